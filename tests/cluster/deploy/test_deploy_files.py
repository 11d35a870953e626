"""cluster/deploy/: checks of the files without AWS, Kubernetes or Docker; test_slurm.py runs the
Slurm script.
"""

import json
import re
import shlex
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from huggingface_hub import constants
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.fakes.command_lines import check_command, check_live, planned
from tests.fakes.kuberay_kinds import KINDS

ROOT = Path(__file__).parents[3]
HERE = ROOT / "cluster" / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = (
    "README.md",
    "ray.yaml",
    "kuberay.yaml",
    "slurm.sh",
    "live.sh",
    "Dockerfile.gpu",
    "Dockerfile.cpu",
)
GIB = 1 << 30


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """Disable the hub, and change to the repository's root."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(ROOT)


# ---- command lines


def commands(text):
    """Yield every `sleep-rl` and `ray` command in lines of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("();<>|&"):
                if found and found[0] in ("sleep-rl", "ray"):
                    yield found
                found = []
            else:
                found.append(word)


def shell_code(text):
    """Return the shell code of a page (blocks and inline) and of comments that start with a
    command.
    """
    blocks = re.findall(r"```\n(.*?)```", text, re.S)
    inline = re.findall(
        r"`((?:sleep-rl|ray|sbatch) "
        r"[^`]+)`",
        re.sub("```.*?```", "", text, flags=re.S),
    )
    comments = re.findall(r"^# ((?:sleep-rl|ray|sbatch) [^\[\n]+?)(?:\s{3,}.*)?$", text, re.M)
    return "\n".join([*blocks, *inline, *comments])


def check_page(text):
    found = list(commands(shell_code(text)))
    for words in found:
        check_command(words)
    for nodes, config in re.findall(
        r"sbatch (?:--nodes=(\d+) )?cluster/deploy/slurm\.sh(?: "
        r"(configs/\S+))?",
        shell_code(text),
    ):
        asked = planned(config or "configs/gpu8_qwen3_8b.yaml")
        node = sbatch((HERE / "slurm.sh").read_text())
        assert int(nodes or node["nodes"]) * int(node["gpus-per-node"]) == asked.gpus, (
            nodes,
            config,
        )
        assert int(nodes or node["nodes"]) * int(node["cpus-per-task"]) >= asked.cpus
    return found


def sbatch(text):
    """Return the #SBATCH options of a script by name."""
    return dict(
        f"{option}=".split("=")[:2] for option in re.findall(r"^#SBATCH --(\S+)$", text, re.M)
    )


def test_every_command_of_the_readme_parses_and_its_config_is_planned():
    text = (HERE / "README.md").read_text()
    found = check_page(text)
    assert {" ".join(words[:2]) for words in found} >= {
        "sleep-rl submit",
        "sleep-rl scale",
        "sleep-rl run",
        "ray up",
        "ray job",
        "ray exec",
        "ray get-auth-token",
    }
    assert set(re.findall(r"`((?:ray|kuberay|slurm|live|Dockerfile)\.\w+)`", text)) == set(
        FILES
    ) - {"README.md"}
    for port in ("6379", "8265", "10001", "52365", "8080"):
        assert port in text


# ---- Ray, AWS


def check_ray(text):
    from ray import autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = yaml.safe_load(text)
    schema = Path(autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(given, json.loads(schema.read_text()))
    config = prepare_config(given)  # the provider's defaults, and rules beyond the schema
    validate_config(config)
    p = planned("configs/gpu8_qwen3_8b.yaml", "cluster.gpu_gb=48")
    types = config["available_node_types"]
    roles = {actor.role: actor for actor in p.actors}
    assert set(types) == {"head", "learner", "rollout"} and config["head_node_type"] == "head"
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0} and types["head"]["max_workers"] == 0
    for role in ("learner", "rollout"):
        nodes = types[role]
        asked = roles[role]
        assert nodes["min_workers"] * nodes["resources"]["GPU"] == asked.count * asked.gpus, role
        assert nodes["min_workers"] * nodes["resources"]["CPU"] >= asked.count * asked.cpus, role
    assert types["rollout"]["max_workers"] > types["rollout"]["min_workers"]
    assert config["max_workers"] == sum(
        types[role]["max_workers"] for role in ("learner", "rollout")
    )
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    for line in [line for line in starts if "ray start" in line]:
        assert line.startswith("export RAY_AUTH_MODE=token;"), line
    started = list(commands("\n".join(starts)))
    said = list(commands(shell_code(text)))
    assert [words[1] for words in started] == ["stop", "start", "stop", "start"]
    assert ["ray", "up", "cluster/deploy/ray.yaml"] in said
    for words in (*started, *said):
        check_command(words)
    assert "--dashboard-host=127.0.0.1" in started[1]
    assert config["file_mounts"]["/home/sleep/.ray/auth_token"].endswith("/.ray/auth_token")
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options and "--env SLEEP_RL_SHARED=/shared" in options
    assert "--volume /shared:/shared" in options and any(
        "/shared" in c for c in config["initialization_commands"]
    )


def test_ray_yaml_is_valid_and_has_the_resources_of_its_preset():
    check_ray((HERE / "ray.yaml").read_text())


# ---- KubeRay


def amount(quantity):
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()
    return int(number) * {"": 1, "m": 1e-3, "Mi": 1 << 20, "Gi": GIB}[unit]


def check_kuberay(text):
    parts = {part["kind"]: part for part in yaml.safe_load_all(text)}
    assert set(parts) == set(KINDS)
    for kind, schema in KINDS.items():
        jsonschema.validate(parts[kind], schema)
    job = parts["RayJob"]["spec"]
    cluster = job["rayClusterSpec"]
    assert cluster["rayVersion"] == dict(pins((HERE / "Dockerfile.gpu").read_text()))["ray"]
    p = check_live(shlex.split(job["entrypoint"]))
    assert yaml.safe_load(job["runtimeEnvYAML"])["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "90"}
    head = cluster["headGroupSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert head["rayStartParams"]["num-cpus"] == "0" and set(groups) == {"learner", "rollout"}
    templates = [head["template"], *(group["template"] for group in groups.values())]
    for template in templates:
        (container,) = template["spec"]["containers"]
        volumes = template["spec"]["volumes"]
        where = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        kinds = {where[volume["name"]]: volume for volume in volumes}
        assert (
            kinds["/shared"]["persistentVolumeClaim"]["claimName"]
            == parts["PersistentVolumeClaim"]["metadata"]["name"]
        )
        assert kinds["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        fixed = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert fixed["RAY_AUTH_MODE"] == "token"
        assert (fixed["SLEEP_RL_SHARED"], fixed["HF_HOME"]) == ("/shared", "/shared/huggingface")
        assert fixed["HF_TOKEN"] is fixed["WANDB_API_KEY"] is None
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "nvidia.com/gpu" not in templates[0]["spec"]["containers"][0]["resources"]["limits"]
    for actor in (actor for actor in p.actors if actor.gpus):
        group = groups[actor.role]
        asks = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        pods = group["replicas"]
        assert group["minReplicas"] == pods <= group["maxReplicas"]
        assert pods * int(asks["nvidia.com/gpu"]) == actor.count * actor.gpus
        assert pods * int(group["rayStartParams"]["num-cpus"]) == actor.count * actor.cpus
        assert pods * amount(asks["cpu"]) >= actor.count * actor.cpus
        shared = amount(group["template"]["spec"]["volumes"][1]["emptyDir"]["sizeLimit"])
        # through a host's memory
        assert pods * (amount(asks["memory"]) - shared) > actor.count * p.learner.base
    for template in (*templates, job["submitterPodTemplate"]):
        assert (
            template["spec"]["containers"][0]["image"]
            == templates[0]["spec"]["containers"][0]["image"]
        )
        assert (
            template["metadata"]["labels"]
            == parts["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
        )
        assert template["spec"]["securityContext"]["runAsUser"] == 1000
    (rule,) = parts["NetworkPolicy"]["spec"]["ingress"]
    assert [sorted(peer) for peer in rule["from"]] == [
        ["podSelector"],
        ["namespaceSelector", "podSelector"],
    ]
    assert (
        f"create secret generic {cluster['authOptions']['secretName']} --from-literal=auth_token="
        in text
    )


def test_kuberay_yaml_is_valid_and_has_the_resources_of_its_preset():
    check_kuberay((HERE / "kuberay.yaml").read_text())


# ---- images


def pins(text):
    return re.findall(r'"([a-z0-9-]+)(?:\[\w+\])?==([\d.]+)"', text)


def check_image(text, extra):
    wanted = [
        Requirement(r) for r in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    ]
    exact = {r.name: str(r.specifier)[2:] for r in wanted if str(r.specifier).startswith("==")}
    found = dict(pins(text))
    assert (
        exact.items() <= found.items()
        and set(found) == {*exact, "ray"}
        and f"--extra {extra} " in text
    )
    assert all(r.specifier.contains(found[r.name]) for r in wanted if r.name in found)
    (base,) = re.findall(r"^FROM (\S+)$", text, re.M)
    assert SpecifierSet(PROJECT["requires-python"]).contains(
        re.fullmatch(r"python:(3\.\d+)-bookworm", base)[1]
    )
    copied = {word for line in re.findall(r"^COPY (.+)$", text, re.M) for word in line.split()[:-1]}
    assert {"sleep_rl", "actors", "learners", "cluster", "configs", "pyproject.toml"} <= copied
    assert all((ROOT / name).exists() for name in copied)
    lines = [line.split() for line in text.splitlines() if re.match("[A-Z]+ ", line)]
    assert [words[1] for words in lines if words[0] == "USER"] == ["1000:1000"] and lines[-2][
        0
    ] == "USER"
    assert "useradd --uid 1000 --create-home" in text and "WORKDIR /opt/sleep_rl" in text
    (environment,) = [
        dict(pair.split("=") for pair in words[1:]) for words in lines if words[0] == "ENV"
    ]
    assert environment == {
        "RAY_AUTH_MODE": "token",
        "SLEEP_RL_SHARED": "/shared",
        "HF_HOME": "/shared/huggingface",
    }
    check_command(json.loads(text[text.index("\nCMD ") + 5 :]))


@pytest.mark.parametrize("extra", ["gpu", "cpu"])
def test_images_pin_the_projects_versions_and_do_not_run_as_root(extra):
    check_image((HERE / f"Dockerfile.{extra}").read_text(), extra)


def test_both_images_have_the_same_ray():
    assert (
        len(
            {
                dict(pins((HERE / f"Dockerfile.{extra}").read_text()))["ray"]
                for extra in ("gpu", "cpu")
            }
        )
        == 1
    )


# ---- secrets


def check_safe(text):
    assert not re.findall(r"\b(?:hf_|wandb_|sk-|AKIA)\w{8,}|\b[0-9a-f]{32,}\b|-----BEGIN", text)
    named = (
        r"(?im)^[^#`\n]*(?:token|secret|password|api_key)\w*[\"']?\s*[:=]\s*[\"']?"
        r"(?![/~$])[a-z0-9+_-]{16,}"
    )
    assert not re.findall(named, text)
    assert not re.search(r"AUTH_MODE\W+(?:value:\s*)?disabled", text)
    if re.search(r"0\.0\.0\.0|::/0|dashboard-host=(?!127\.0\.0\.1)", text):
        assert "authOptions: {mode: token," in text


@pytest.mark.parametrize("name", FILES)
def test_no_file_contains_a_secret_or_opens_a_port_without_authentication(name):
    check_safe((HERE / name).read_text())


# ---- the checks find mistakes

CHECKS = {
    "README.md": check_page,
    "ray.yaml": check_ray,
    "kuberay.yaml": check_kuberay,
    "Dockerfile.gpu": lambda text: check_image(text, "gpu"),
    "Dockerfile.cpu": lambda text: check_image(text, "cpu"),
}
MISTAKES = [
    ("README.md", "ray up cluster", "ray upp cluster"),
    ("README.md", "--no-wait --", "--no-waiting --"),
    ("README.md", "gpu_gb=48\nray down", "gpu_gb=20\nray down"),
    ("README.md", "--nodes=8", "--nodes=7"),
    ("README.md", "rollouts=12`", "--rollouts 12`"),
    ("README.md", "gpu64_qwen3_8b.yaml first", "gpu65_qwen3_8b.yaml first"),
    ("ray.yaml", "idle_timeout_minutes", "idle_minutes"),
    ("ray.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
    ("ray.yaml", "GPU: 4}", "GPU: 8}"),
    ("ray.yaml", "min_workers: 4", "min_workers: 3"),
    ("ray.yaml", "--port=6379", "--ports=6379"),
    ("ray.yaml", "export RAY_AUTH_MODE=token; ulimit", "ulimit"),
    ("ray.yaml", "head_node_type: head", "head_node_type: master"),
    ("ray.yaml", "--address=$RAY_HEAD_IP:6379", "--address=$RAY_HEAD_IP:6379 --port=6379"),
    ("ray.yaml", "{CPU: 0, GPU: 0}", "{CPU: 0, GPU: 1}"),
    ("kuberay.yaml", "backoffLimit: 3", "backOffLimit: 3"),
    ("kuberay.yaml", 'num-cpus: "4"', 'num-cpus: "5"'),
    ("kuberay.yaml", 'nvidia.com/gpu: "1"', 'nvidia.com/gpu: "2"'),
    ("kuberay.yaml", "replicas: 4", "replicas: 5"),
    ("kuberay.yaml", 'rayVersion: "2.60.0"', 'rayVersion: "2.59.0"'),
    ("kuberay.yaml", "mode: token", "mode: disabled"),
    ("kuberay.yaml", "claimName: sleep-rl-shared", "claimName: other"),
    ("kuberay.yaml", "medium: Memory, ", ""),
    ("kuberay.yaml", "runAsUser: 1000", "runAsUser: 0"),
    ("kuberay.yaml", "ReadWriteMany", "ReadWriteOnce"),
    ("kuberay.yaml", "shutdownAfterJobFinishes: true\n", ""),
    ("kuberay.yaml", "memory: 192Gi", "memory: 64Gi"),
    ("kuberay.yaml", "ray.io/v1", "ray.io/v2"),
    ("kuberay.yaml", "gpu8_qwen3_8b.yaml gpu8", "gpu64_qwen3_8b.yaml gpu8"),
    ("Dockerfile.gpu", "vllm==0.32.0", "vllm==0.31.0"),
    ("Dockerfile.gpu", "USER 1000:1000\n", ""),
    ("Dockerfile.gpu", "RAY_AUTH_MODE=token ", ""),
    ("Dockerfile.gpu", "COPY learners learners\n", ""),
    ("Dockerfile.cpu", "ray[default]==2.60.0", "ray[default]==2.4.0"),
    ("Dockerfile.cpu", "python:3.11", "python:3.10"),
    ("Dockerfile.cpu", "--extra cpu", "--extra gpu"),
    ("Dockerfile.cpu", "configs/demo.yaml", "configs/dema.yaml"),
]


@pytest.mark.parametrize(
    ("name", "right", "wrong"), MISTAKES, ids=[f"{m[0]}-{i}" for i, m in enumerate(MISTAKES)]
)
def test_a_mistake_is_detected(name, right, wrong):
    text = (HERE / name).read_text()
    assert right in text
    with pytest.raises((Exception, SystemExit)):
        CHECKS[name](text.replace(right, wrong))


@pytest.mark.parametrize(
    "line",
    [
        "token: 0123456789abcdef0123",
        "RAY_AUTH_TOKEN=abcdefghijklmnop1",
        "value: hf_abcdefghijk",
        "f" * 40,
        "--dashboard-host=0.0.0.0",
        "RAY_AUTH_MODE=disabled",
        "{name: RAY_AUTH_MODE, value: disabled}",
    ],
)
def test_a_secret_or_an_open_port_is_detected(line):
    with pytest.raises(AssertionError):
        check_safe(line)
