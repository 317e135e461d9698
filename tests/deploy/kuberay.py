"""What KubeRay accepts of a RayJob and a RayService: a JSON schema of our own.

Field by field from KubeRay's types (`ray-operator/apis/ray/v1/*_types.go` of ray-project/kuberay,
Apache-2.0, as of KubeRay 1.7), from which its custom resource definitions are generated. Those are
1.3 MB each, nearly all of it Kubernetes' own types; of these here is what our manifests use, and a
field that is not here is refused, as the API server refuses (or drops) what it does not know.
"""

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
WHOLE: Schema = {"type": "integer", "minimum": 0}
YES_NO: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[KMGTPE]i?)?$"}


def one_of(*words: str) -> Schema:
    """Exactly one of these words."""
    return {"enum": list(words)}


def many(item: Schema) -> Schema:
    """A list of at least one."""
    return {"type": "array", "items": item, "minItems": 1}


def fields(required: tuple[str, ...] = (), **known: Schema) -> Schema:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": known,
        "required": list(required),
        "additionalProperties": False,
    }


_METADATA = fields(("name",), name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS)
_SECRET = fields(("key", "name"), name=NAME, key=TEXT, optional=YES_NO)
_FROM = fields(secretKeyRef=_SECRET)
_QUANTITIES: Schema = {"type": "object", "additionalProperties": QUANTITY}
_CONTAINER = fields(
    ("name", "image", "resources"),
    name=NAME,
    image=TEXT,
    imagePullPolicy=one_of("Always", "IfNotPresent", "Never"),
    command=many(TEXT),
    args=many(TEXT),
    env=many(fields(("name",), name=TEXT, value={"type": "string"}, valueFrom=_FROM)),
    resources=fields(limits=_QUANTITIES, requests=_QUANTITIES),
    volumeMounts=many(fields(("name", "mountPath"), name=NAME, mountPath=TEXT, readOnly=YES_NO)),
)
_POD = fields(
    ("containers",),
    containers=many(_CONTAINER),
    serviceAccountName=NAME,
    nodeSelector=TEXTS,
    terminationGracePeriodSeconds=WHOLE,
    tolerations=many(
        fields(
            key=TEXT,
            operator=one_of("Exists", "Equal"),
            value=TEXT,
            effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute"),
        )
    ),
    volumes=many(
        fields(
            ("name",),
            name=NAME,
            configMap=fields(("name",), name=NAME),
            secret=fields(("secretName",), secretName=NAME),
        )
    ),
)
_TEMPLATE = fields(("spec",), metadata=fields(labels=TEXTS, annotations=TEXTS), spec=_POD)

_HEAD_GROUP = fields(
    ("template",),
    template=_TEMPLATE,
    serviceType=one_of("ClusterIP", "NodePort", "LoadBalancer"),
    enableIngress=YES_NO,
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
)
_WORKER_GROUP = fields(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=NAME,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    numOfHosts=WHOLE,
    idleTimeoutSeconds=WHOLE,
    priority={"type": "integer"},
    rayStartParams=TEXTS,
    resources=TEXTS,
    labels=TEXTS,
    template=_TEMPLATE,
)
_CREDENTIAL = fields(value=TEXT, valueFrom=_FROM)
_CLUSTER = fields(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=fields(
        mode=one_of("disabled", "token"), secretName=NAME, enableK8sTokenAuth=YES_NO
    ),
    enableInTreeAutoscaling=YES_NO,
    autoscalerOptions=fields(
        version=one_of("v1", "v2"),
        idleTimeoutSeconds=WHOLE,
        upscalingMode=one_of("Default", "Aggressive", "Conservative"),
    ),
    gcsFaultToleranceOptions=fields(
        backend=one_of("redis", "rocksdb"),
        redisAddress=TEXT,
        redisUsername=_CREDENTIAL,
        redisPassword=_CREDENTIAL,
        externalStorageNamespace=TEXT,
    ),
    headGroupSpec=_HEAD_GROUP,
    workerGroupSpecs=many(_WORKER_GROUP),
    suspend=YES_NO,
)

RAY_JOB = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=one_of("ray.io/v1"),
    kind=one_of("RayJob"),
    metadata=_METADATA,
    spec=fields(
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        rayClusterSpec=_CLUSTER,
        clusterSelector=TEXTS,
        submissionMode=one_of("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"),
        submitterPodTemplate=_TEMPLATE,
        submitterConfig=fields(backoffLimit=WHOLE),
        entrypointNumCpus={"type": "number"},
        entrypointNumGpus={"type": "number"},
        entrypointResources=TEXT,
        jobId=TEXT,
        metadata=TEXTS,
        activeDeadlineSeconds=WHOLE,
        backoffLimit=WHOLE,
        shutdownAfterJobFinishes=YES_NO,
        ttlSecondsAfterFinished=WHOLE,
        suspend=YES_NO,
    ),
)

RAY_SERVICE = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=one_of("ray.io/v1"),
    kind=one_of("RayService"),
    metadata=_METADATA,
    spec=fields(
        ("rayClusterConfig",),
        serveConfigV2=TEXT,
        rayClusterConfig=_CLUSTER,
        upgradeStrategy=fields(
            type=one_of("NewCluster", "NewClusterWithIncrementalUpgrade", "None")
        ),
        excludeHeadPodFromServeSvc=YES_NO,
    ),
)

_PEER = fields(podSelector=fields(matchLabels=TEXTS), namespaceSelector=fields(matchLabels=TEXTS))
_PORT = fields(protocol=one_of("TCP", "UDP"), port=WHOLE)
_INGRESS: Schema = {
    "type": "object",
    # Not by `fields`: one of the two is a word of Python's.
    "properties": {"from": many(_PEER), "ports": many(_PORT)},
    "required": ["from"],
    "additionalProperties": False,
}
NETWORK_POLICY = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=one_of("networking.k8s.io/v1"),
    kind=one_of("NetworkPolicy"),
    metadata=_METADATA,
    spec=fields(
        ("podSelector",),
        podSelector=fields(matchLabels=TEXTS),
        policyTypes=many(one_of("Ingress", "Egress")),
        ingress=many(_INGRESS),
    ),
)

CONFIG_MAP = fields(
    ("apiVersion", "kind", "metadata"),
    apiVersion=one_of("v1"),
    kind=one_of("ConfigMap"),
    metadata=_METADATA,
    data=TEXTS,
)

SCHEMAS: dict[str, Schema] = {
    "RayJob": RAY_JOB,
    "RayService": RAY_SERVICE,
    "NetworkPolicy": NETWORK_POLICY,
    "ConfigMap": CONFIG_MAP,
}
