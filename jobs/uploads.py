"""What must be said before a picture is sent anywhere: that it may be, and what it may cost."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from rich.console import Console

from facescan.errors import UsageError
from jobs import cluster
from jobs.config import RunConfig
from jobs.passes import Pass
from serving import estimate
from serving.engines import hosted
from serving.tokens import HostedOptions

_SOON = timedelta(days=60)


def check(config: RunConfig, planned: Sequence[Pass], console: Console) -> None:
    """Whether pictures may be sent to the models of a run that are behind an API.

    Names the provider's terms either way.

    Raises:
        UsageError: that was not allowed, or the price is not known and that was not allowed.
        EngineUnavailable: there is no API key.
    """
    cards = {each.card.name: each.card for each in planned if each.card.engine == hosted.NAME}
    for card in cards.values():
        options = card.options(HostedOptions)
        where = f"model {card.name}: pictures are sent to {hosted.server(options)}"
        terms = hosted.terms(options)
        if not config.allow_upload:
            raise UsageError(f"{where}, which needs --allow-upload. {terms}")
        if estimate.price(options) is None:
            _check_unknown_price(config, card.name)
        elif config.max_cost is not None and options.image_tokens is None:
            raise UsageError(
                f"model {card.name}: --max-cost {config.max_cost}: the card does not say how many "
                "tokens a picture is (`image_tokens`), so nothing could hold it to that"
            )
        _check_key(config, card.name, options)
        console.print(f"{where}. {terms}", highlight=False, soft_wrap=True)
        today = datetime.now(UTC).date()
        if options.shutdown is not None and options.shutdown - today <= _SOON:
            console.print(
                f"model {card.name}: its provider serves it until {options.shutdown}",
                highlight=False,
                soft_wrap=True,
            )


def _check_key(config: RunConfig, name: str, options: HostedOptions) -> None:
    if options.api_key is None:
        return
    address = urlsplit(options.base_url or "")
    if address.scheme == "http" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(
            f"model {name}: the key in {options.api_key} would be sent to {options.base_url} for "
            "everybody on the way to read; give an address with https"
        )
    if config.batch or cluster.is_own(config.ray_address):
        # Elsewhere it has to be where the engines run, which may not be here.
        hosted.key(options.api_key)


def _check_unknown_price(config: RunConfig, name: str) -> None:
    if config.max_cost is not None:
        raise UsageError(
            f"model {name}: --max-cost {config.max_cost}: its price is not known, so nothing could "
            "hold it to that; give a card with a `price`"
        )
    if not config.allow_unknown_price:
        raise UsageError(
            f"model {name}: its price is not known; give a card with a `price`, or "
            "--allow-unknown-price"
        )
