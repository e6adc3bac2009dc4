"""What guidance asks of the other settings of an experiment."""

from vamf.data.source import DataSource
from vamf.experiment_settings import Evaluation
from vamf.flow.guidance import Guidance
from vamf.models.config import NetworkConfig, takes_interval

PROXIES = ("ema", "online", "head", "batch")
"""The proxies that know labels."""


def check_guidance(
    guidance: Guidance | None,
    *,
    model: NetworkConfig,
    data: DataSource,
    proxy: str,
    evaluation: Evaluation,
) -> None:
    """Raises ValueError if guidance and the network, the data, the proxy or sampling disagree."""
    known = data.classes
    if model.classes != (known if guidance else 0):
        raise ValueError(
            "guidance and model.classes go together, with labelled data of as many classes; "
            f"got {guidance}, {model.classes} and {data} with {known} classes"
        )
    _check_inputs(guidance, model, evaluation)
    if guidance is None:
        return
    if model.classes == 0:
        raise ValueError(f"guidance needs labelled data; got {data}")
    if proxy not in PROXIES:
        raise ValueError(f"guidance needs a proxy that knows labels; got {proxy}")
    if guidance.mixing == "parameters" and proxy != "ema":
        raise ValueError(f"guidance that mixes parameters needs the proxy ema; got {proxy}")


def _check_inputs(guidance: Guidance | None, model: NetworkConfig, evaluation: Evaluation) -> None:
    """The inputs of the network are what training draws and sampling chooses."""
    most = guidance.max_scale if guidance else None
    if model.guided != (most is not None):
        raise ValueError(
            f"guidance.max_scale and model.guided go together; got {most} and {model.guided}"
        )
    if evaluation.guidance_scale > (most or 1):
        raise ValueError(
            "evaluation.guidance_scale must lie in [1, guidance.max_scale], and be 1 without "
            f"that; got {evaluation.guidance_scale} and {most}"
        )
    drawn, taken = bool(guidance and guidance.random_interval), takes_interval(model)
    if taken != drawn:
        raise ValueError(
            "guidance.random_interval and model.guided_interval go together; "
            f"got {drawn} and {taken}"
        )
    times = evaluation.guidance_t_min, evaluation.guidance_t_max
    if times != (0, 1) and not taken:
        raise ValueError(
            "evaluation.guidance_t_min and guidance_t_max must be 0 and 1 without "
            f"guidance.random_interval; got {times[0]} and {times[1]}"
        )
