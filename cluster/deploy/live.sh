#!/usr/bin/env bash
# cluster/deploy/live.sh CONFIG NAME [section.key=value ...]
# Starts the run NAME on the Ray cluster of this machine, or resumes it if it exists. $SLEEP_RL_SHARED is a folder that all
# nodes share at the same path, for runs, base models and checkpoints. The run waits for missing nodes (SLEEP_RL_WAIT_S
# seconds, 1800 if unset).
set -euo pipefail
if [ $# -lt 2 ] || [ -z "${SLEEP_RL_SHARED:-}" ]; then
  echo "live.sh: expected CONFIG NAME [section.key=value ...] and \$SLEEP_RL_SHARED, got '$*' and '${SLEEP_RL_SHARED:-}'" >&2
  exit 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
config=$1 name=$2
shift 2
shared=$SLEEP_RL_SHARED
here=("cluster.address=${RAY_ADDRESS:-auto}" "cluster.wait_for_nodes_s=${SLEEP_RL_WAIT_S:-1800}")
if [ -f "$shared/runs/$name/run.json" ]; then
  exec sleep-rl resume "$shared/runs/$name" "${here[@]}"
fi
exec sleep-rl run "$config" run.name="$name" run.dir="$shared/runs" run.cache="$shared/cache" "${here[@]}" "$@"
