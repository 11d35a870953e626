"""JSON schemas of the Kubernetes and KubeRay fields in cluster/deploy/kuberay.yaml."""


def closed(required, optional=None):
    """Return the schema of a mapping with these fields and no others."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": {**required, **(optional or {})},
    }


def array(items):
    return {"type": "array", "minItems": 1, "items": items}


TEXT = {"type": "string"}
WHOLE = {"type": "integer"}
YES_NO = {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
NAME = {"type": "string", "pattern": "^[a-z0-9-]{1,47}$"}
RIGHTS = closed(
    {"allowPrivilegeEscalation": {"const": False}, "capabilities": {"const": {"drop": ["ALL"]}}}
)
USER = closed(
    {
        "runAsNonRoot": {"const": True},
        "runAsUser": WHOLE,
        "runAsGroup": WHOLE,
        "fsGroup": WHOLE,
        "seccompProfile": {"const": {"type": "RuntimeDefault"}},
    }
)
SECRET = closed({"secretKeyRef": closed({"name": TEXT, "key": TEXT, "optional": YES_NO})})
VARIABLE = {
    "oneOf": [closed({"name": TEXT, "value": TEXT}), closed({"name": TEXT, "valueFrom": SECRET})]
}
QUANTITIES = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^\d+(m|Mi|Gi)?$"},
    "required": ["cpu", "memory"],
}
CONTAINER = closed(
    {
        "name": NAME,
        "image": TEXT,
        "securityContext": RIGHTS,
        "resources": closed({"requests": QUANTITIES, "limits": QUANTITIES}),
    },
    {
        "env": array(VARIABLE),
        "ports": array(closed({"name": TEXT, "containerPort": WHOLE})),
        "volumeMounts": array(closed({"name": TEXT, "mountPath": TEXT})),
    },
)
VOLUME = {
    "oneOf": [
        closed({"name": TEXT, "persistentVolumeClaim": closed({"claimName": TEXT})}),
        closed(
            {"name": TEXT, "emptyDir": closed({"medium": {"const": "Memory"}, "sizeLimit": TEXT})}
        ),
    ]
}
TOLERATION = closed({"key": TEXT, "operator": {"enum": ["Exists", "Equal"]}, "effect": TEXT})
POD = closed(
    {
        "metadata": closed({"labels": TEXTS}),
        "spec": closed(
            {"securityContext": USER, "containers": array(CONTAINER)},
            {
                "volumes": array(VOLUME),
                "tolerations": array(TOLERATION),
                "automountServiceAccountToken": YES_NO,
                "restartPolicy": {"enum": ["Never", "OnFailure", "Always"]},
            },
        ),
    }
)
HEAD = closed(
    {
        "rayStartParams": TEXTS,
        "template": POD,
        "serviceType": {"const": "ClusterIP"},
        "enableIngress": {"const": False},
    }
)
GROUP = closed(
    {
        "groupName": TEXT,
        "replicas": WHOLE,
        "minReplicas": WHOLE,
        "maxReplicas": WHOLE,
        "rayStartParams": TEXTS,
        "template": POD,
    }
)
SCALING = closed(
    {
        "idleTimeoutSeconds": WHOLE,
        "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
        "securityContext": RIGHTS,
    }
)
RAY_CLUSTER = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed({"mode": {"const": "token"}, "secretName": NAME}),
        "headGroupSpec": HEAD,
        "workerGroupSpecs": array(GROUP),
        "enableInTreeAutoscaling": {"const": True},
        "autoscalerOptions": SCALING,
    }
)
RAY_JOB = closed(
    {
        "entrypoint": TEXT,
        "rayClusterSpec": RAY_CLUSTER,
        "shutdownAfterJobFinishes": {"const": True},
        "ttlSecondsAfterFinished": WHOLE,
        "backoffLimit": {"type": "integer", "minimum": 1},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        "submitterPodTemplate": POD,
        "runtimeEnvYAML": TEXT,
    }
)
CLAIM = closed(
    {
        "accessModes": {"const": ["ReadWriteMany"]},
        "storageClassName": TEXT,
        "resources": closed({"requests": closed({"storage": TEXT})}),
    }
)
POLICY = closed(
    {
        "podSelector": {"type": "object"},
        "policyTypes": {"const": ["Ingress"]},
        "ingress": array(closed({"from": array({"type": "object"})})),
    }
)

KINDS = {
    kind: closed(
        {
            "apiVersion": {"const": version},
            "kind": {"const": kind},
            "metadata": closed({"name": NAME}),
            "spec": spec,
        }
    )
    for kind, version, spec in (
        ("PersistentVolumeClaim", "v1", CLAIM),
        ("NetworkPolicy", "networking.k8s.io/v1", POLICY),
        ("RayJob", "ray.io/v1", RAY_JOB),
    )
}
