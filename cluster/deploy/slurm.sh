#!/usr/bin/env bash
#SBATCH --job-name=sleep-rl
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --signal=B:USR1@180
# sbatch cluster/deploy/slurm.sh [CONFIG [NAME [section.key=value ...]]]     from the repository's root, on a shared disk
# sbatch --nodes=8 cluster/deploy/slurm.sh configs/gpu64_qwen3_8b.yaml
#
# Ray's head starts on the first node, one Ray node on each other; the driver is a process of this script. Before the time
# limit Slurm sends USR1: the run stops, the job is requeued, and the run resumes. A preempted job resumes, too (--requeue).
# The NAME of an earlier run resumes that run; without NAME each job starts a new run. Variables (and defaults):
#   SLEEP_RL_SHARED      folder for runs, cache and models, on a disk that all nodes share     (the repository)
#   SLEEP_RL_VENV        virtual environment with sleep-rl, on such a disk                     (.venv)
#   RAY_AUTH_TOKEN_PATH  file with Ray's token, readable by you only                           (~/.ray/auth_token)
#   HEAD_IP              address of the first node, if its name resolves to another one        (by its name)
set -euo pipefail

say() { echo "slurm.sh: $*" >&2; }
refuse() { say "$*"; exit 2; }

cd "${SLURM_SUBMIT_DIR:?slurm.sh: sbatch starts it}"
[ -x cluster/deploy/live.sh ] || refuse "submit it from the repository's root, got $PWD"
config=${1:-configs/gpu8_qwen3_8b.yaml}
name=${2:-$(basename "$config" .yaml)-$SLURM_JOB_ID}
shift $(($# < 2 ? $# : 2))
gpus=${SLURM_GPUS_PER_NODE:-0}
gpus=${gpus##*:}  # h100:8 -> 8

export SLEEP_RL_SHARED=${SLEEP_RL_SHARED:-$PWD}
export HF_HOME=${HF_HOME:-$SLEEP_RL_SHARED/huggingface}
export PATH="${SLEEP_RL_VENV:-$PWD/.venv}/bin:$PATH"

# Ray refuses processes without the token, and reads it from this file on every node: it is in no command, log or
# environment. Without a token anyone on the network could run code as you.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
unset RAY_AUTH_TOKEN
[ -s "$RAY_AUTH_TOKEN_PATH" ] ||
  refuse "no token in $RAY_AUTH_TOKEN_PATH; (umask 077; ray get-auth-token --generate > /dev/null) makes ~/.ray/auth_token"
[ -z "$(find -L "$RAY_AUTH_TOKEN_PATH" -perm /077)" ] || refuse "others can read $RAY_AUTH_TOKEN_PATH; chmod 600 it"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ "${#nodes[@]}" -gt 0 ] || refuse "scontrol names no node for $SLURM_JOB_NODELIST"
head=${nodes[0]}
ip=${HEAD_IP:-$(getent ahostsv4 "$head" | awk 'NR == 1 { print $1 }' || true)}
if [ -z "${HEAD_IP:-}" ] && [[ -z $ip || $ip == 127.* ]]; then
  refuse "the name $head resolves to '$ip' here; set HEAD_IP to the node's address"
fi
port=$((20000 + SLURM_JOB_ID % 10000))

# shellcheck disable=SC2317  # the traps call these
{
  end_driver() {  # the run writes its last record and its report; a later job resumes it from its newest checkpoint
    signalled=yes
    [ -n "$driver" ] || exit 143
    kill -TERM "$driver" 2> /dev/null || true
    (sleep 100 && kill -KILL "$driver") > /dev/null 2>&1 &
  }
  end_ray() {
    trap - EXIT
    kill -TERM "${steps[@]}" 2> /dev/null || true
    for _ in {1..120}; do
      kill -0 "${steps[@]}" 2> /dev/null || break
      sleep 0.25
    done
    kill -KILL "${steps[@]}" 2> /dev/null || true
    [ -z "$requeue" ] || scontrol requeue "$SLURM_JOB_ID" || say "could not be requeued: sbatch cluster/deploy/slurm.sh $config $name"
  }
}
steps=() driver='' signalled='' requeue=''
trap end_ray EXIT
trap 'say "time limit"; requeue=yes; end_driver' USR1
trap 'say "got SIGTERM"; end_driver' TERM

on_node() {  # one step per node, so that the loss of a node ends no other step
  local node=$1
  shift
  srun --nodes=1 --ntasks=1 --nodelist="$node" --cpus-per-task="$SLURM_CPUS_PER_TASK" --gpus-per-node="$gpus" \
    "$@" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" --disable-usage-stats --block &
  steps+=($!)
}

on_node "$head" ray start --head --node-ip-address="$ip" --port="$port" --include-dashboard=false
until (exec 3<> "/dev/tcp/$ip/$port") 2> /dev/null; do
  kill -0 "${steps[0]}" 2> /dev/null || refuse "Ray's head on $head ended before it accepted connections"
  [ "$SECONDS" -lt "${HEAD_TIMEOUT_S:-300}" ] || refuse "waited ${HEAD_TIMEOUT_S:-300} s for Ray's head on $head ($ip:$port)"
  sleep 1
done
for node in "${nodes[@]:1}"; do
  on_node "$node" ray start --address="$ip:$port"
done

RAY_ADDRESS="$ip:$port" cluster/deploy/live.sh "$config" "$name" "$@" &
driver=$!
while :; do  # a signal interrupts `wait`, but the run has not ended yet
  signalled='' code=0
  wait "$driver" || code=$?
  [ -n "$signalled" ] || break
done
[ "$code" -ne 0 ] || requeue=''
exit "$code"
