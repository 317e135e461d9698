"""cluster.yaml and the manifests for Kubernetes: valid, closed, and as their comments say."""

import copy
import importlib.metadata
import re
import shlex
from pathlib import Path
from typing import Any, cast

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr as derived_from_custom_resource,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount
from ray.serve.schema import ServeDeploySchema

from jobs.config import resolve
from serving import api_keys, app
from serving.service import ServiceSettings
from tests.deploy import kuberay

ROOT = Path(__file__).parents[2]
RUN = ROOT / "deploy" / "run.yaml"
MANIFESTS = sorted((ROOT / "deploy").glob("ray*.yaml"))
Mapping = dict[str, Any]


def documents(path: Path) -> list[Mapping]:
    return [cast("Mapping", each) for each in yaml.safe_load_all(path.read_text())]


def document(path: Path, kind: str) -> Mapping:
    (found,) = [each for each in documents(path) if each["kind"] == kind]
    return found


def ray_job() -> Mapping:
    return document(ROOT / "deploy" / "rayjob.yaml", "RayJob")


def ray_service() -> Mapping:
    return document(ROOT / "deploy" / "rayservice.yaml", "RayService")


def ray_clusters() -> list[Mapping]:
    return [ray_job()["spec"]["rayClusterSpec"], ray_service()["spec"]["rayClusterConfig"]]


def launcher_config() -> Mapping:
    return cast("Mapping", yaml.safe_load((ROOT / "cluster.yaml").read_text()))


def of_custom_resource(spec: Mapping) -> Mapping:
    """What Ray's autoscaler makes of a RayCluster; it validates that by its schema."""
    resource = {"metadata": {"name": "facescan", "namespace": "default"}, "spec": spec}
    return cast("Mapping", derived_from_custom_resource(resource))


def launched(config: Mapping, demands: int, failed: tuple[str, ...] = ()) -> dict[str, int]:
    """What Ray's scheduler starts for so many engines; launches of the types `failed` just did."""
    parsed = AutoscalingConfig(configs=config, skip_content_hash=True)
    engine = ResourceRequestUtil.make({"CPU": 1, "GPU": 1})
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            node_type_configs=parsed.get_node_type_configs(),
            disable_launch_config_check=True,
            max_num_nodes=config["max_workers"] + 1,
            resource_requests=[ResourceRequestByCount(request=engine, count=demands)],
            recoverable_resource_availabilities=dict.fromkeys(failed, 0.0),
        )
    )
    return {each.instance_type: each.count for each in reply.to_launch}


# The launcher's file


def test_ray_takes_the_launcher_s_file() -> None:
    validate_config(prepare_config(launcher_config()))


def test_a_key_that_ray_does_not_know_is_found() -> None:
    with pytest.raises(jsonschema.ValidationError, match="spot_workers"):
        validate_config(prepare_config(launcher_config() | {"spot_workers": 1}))


def test_workers_with_gpus_scale_from_none() -> None:
    config = launcher_config()
    types = dict(config["available_node_types"])
    types.pop(config["head_node_type"])
    for each in types.values():
        assert (each["min_workers"], each["resources"]["GPU"]) == (0, 1)
        assert 0 < each["max_workers"] <= config["max_workers"]
    spot = types["gpu-spot"]["node_config"]
    assert spot.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot == types["gpu-on-demand"]["node_config"]


def cases() -> list[Any]:
    launcher = prepare_config(launcher_config())
    return [
        pytest.param(launcher, id="cluster.yaml"),
        pytest.param(of_custom_resource(ray_job()["spec"]["rayClusterSpec"]), id="rayjob"),
    ]


@pytest.mark.parametrize("config", cases())
def test_engines_get_spot_nodes_and_on_demand_ones_where_there_are_none(config: Mapping) -> None:
    assert launched(config, 3) == {"gpu-spot": 3}
    assert launched(config, 3, failed=("gpu-spot",)) == {"gpu-on-demand": 3}


def test_every_node_of_the_launcher_has_token_authentication_and_the_dashboard_is_on_loopback() -> (
    None
):
    config = launcher_config()
    assert "~/.ray/auth_token" in config["file_mounts"].values()
    for role in ("head", "worker"):
        (start,) = [each for each in config[f"{role}_start_ray_commands"] if "ray start" in each]
        words = shlex.split(start.replace(";", " ; "))
        assert "RAY_AUTH_MODE=token" in words[: words.index("start")]
        assert "RAY_USAGE_STATS_ENABLED=0" in words
        assert ("--dashboard-host=127.0.0.1" in words) == (role == "head")
    for each in config["available_node_types"].values():
        assert each["node_config"]["SecurityGroupIds"], "Ray would make one open to all for SSH"


def test_the_launcher_installs_from_the_locks() -> None:
    commands = launcher_config()["setup_commands"]
    assert any(each.startswith("make ") and each.endswith(" install") for each in commands)
    assert not any("pip install" in each for each in commands)


def test_the_run_s_settings_are_those_of_facescan_and_of_the_launcher_s_paths() -> None:
    config = resolve({}, RUN)
    paths = launcher_config()["metadata"]
    assert config.dataset == paths["shards"]
    assert config.output_dir.startswith(f"{paths['runs']}/")
    assert config.replicas == launcher_config()["max_workers"]


# Kubernetes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_takes_every_document(path: Path) -> None:
    found = documents(path)
    assert {each["kind"] for each in found} > {"NetworkPolicy"}
    for each in found:
        jsonschema.validate(each, kuberay.SCHEMAS[each["kind"]])


@pytest.mark.parametrize(
    ("field", "value"), [("authOptions", {"mode": "none"}), ("autoscaling", True)]
)
def test_a_field_that_kuberay_does_not_know_is_found(field: str, value: object) -> None:
    job = copy.deepcopy(ray_job())
    job["spec"]["rayClusterSpec"][field] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, kuberay.RAY_JOB)


def test_clusters_on_kubernetes_have_token_authentication_and_no_open_port() -> None:
    for cluster in ray_clusters():
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        assert not cluster["headGroupSpec"].get("enableIngress")


def test_clusters_on_kubernetes_have_the_ray_that_is_locked() -> None:
    for cluster in ray_clusters():
        assert cluster["rayVersion"] == importlib.metadata.version("ray")


def test_no_secret_stands_in_a_manifest() -> None:
    for path in (*MANIFESTS, ROOT / "cluster.yaml", RUN):
        text = path.read_text()
        assert "env_vars" not in text
        assert not re.search(r"[A-Z]_(KEY|SECRET|TOKEN)\b", text)


def test_the_job_s_workers_scale_from_none_with_a_gpu_each() -> None:
    config = of_custom_resource(ray_job()["spec"]["rayClusterSpec"])
    for name in ("gpu-spot", "gpu-on-demand"):
        node = config["available_node_types"][name]
        assert (node["min_workers"], node["max_workers"], node["resources"]["GPU"]) == (0, 8, 1)


def test_the_job_runs_the_run_s_settings() -> None:
    data = document(ROOT / "deploy" / "rayjob.yaml", "ConfigMap")["data"]
    assert yaml.safe_load(data["run.yaml"]) == yaml.safe_load(RUN.read_text())
    words = shlex.split(ray_job()["spec"]["entrypoint"])
    (container,) = ray_job()["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"][
        "containers"
    ]
    (mount,) = container["volumeMounts"]
    assert words == ["facescan", "run", "-C", f"{mount['mountPath']}/run.yaml"]


def test_ray_serve_and_the_service_take_the_service_s_configuration() -> None:
    schema = ServeDeploySchema.model_validate(
        yaml.safe_load(ray_service()["spec"]["serveConfigV2"])
    )
    (application,) = schema.applications
    assert application.import_path == f"{app.build.__module__}:{app.build.__name__}"
    settings = ServiceSettings.model_validate(application.args)
    assert not settings.enable_sensitive


def test_every_pod_of_the_service_has_its_front_and_its_keys() -> None:
    cluster = ray_service()["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        variables = {each["name"]: each["value"] for each in container["env"]}
        assert variables[app.FRONT_VARIABLE] == app.FRONT
        (mount,) = container["volumeMounts"]
        (volume,) = pod["volumes"]
        assert mount["name"] == volume["name"]
        assert Path(variables[api_keys.FILE]).parent == Path(mount["mountPath"])


def test_the_service_survives_its_head_and_drains() -> None:
    cluster = ray_service()["spec"]["rayClusterConfig"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"]
    of_custom_resource(cluster)
    drain_s = ServiceSettings(model="fake").drain_s
    for group in cluster["workerGroupSpecs"]:
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drain_s
