"""`facescan run --batch`: open requests -> files -> batches at the provider -> durable replies.

    open rows ──check, decode, encode──> file ──upload, create──> batch ──results──> journal

The driver does all of it, without Ray: the work is done at the provider. How far each batch is
stands in the run folder before anything is sent (`jobs.batch_records`).
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.console import Console

from facescan.errors import (
    AccessDenied,
    BadImage,
    BudgetExhausted,
    FacescanError,
    QuotaExhausted,
    RunStopped,
    UsageError,
)
from facescan.models import ModelCard
from facescan.run import ledger, manifest
from facescan.run.folder import RunFolder
from facescan.run.journal import Journal
from facescan.run.ledger import Ledger
from facescan.run.manifest import AnsweredBy
from facescan.run.plan import Plan
from facescan.types import Reply
from jobs import record
from jobs.batch_lines import Preparation
from jobs.batch_records import FOLDER, Record, Stage, at, described
from jobs.batch_results import Collected
from jobs.cluster import Share
from jobs.config import RunConfig
from jobs.engine_actor import Leg
from jobs.passes import Pass
from jobs.pipeline import Report, Work
from serving import batches as provider_batches
from serving import engine as engines
from serving import estimate
from serving.batches import Batch, Desk, Lines, NotThereError, UncertainError, UnreachableError
from serving.engines import hosted
from serving.tokens import HostedOptions

FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 300.0
"""Between two looks at the provider: the first, which grows while no batch changes its state, and
the longest. A batch takes minutes to a day."""

_GROWTH = 1.5

MOST_OPEN = 32
"""Batches at the provider at a time; bounds what is known of them in memory (8 MB each)."""

_LOOKS_IN_VAIN = 24
"""After which a provider that cannot be reached is waited for no longer: two hours."""

NO_ENGINES = Share(replicas=0, gpus=0, cpus=0)
"""What a leg needs here that is asked by batches."""

_RESERVATION = "0"
"""Number of the only reservation in the ledger session of a batch."""

_EXAMPLES = 3


def check(config: RunConfig, planned: Sequence[Pass]) -> None:
    """Whether these passes can be asked by batches.

    Raises:
        UsageError: a model runs here, or what its batches cost is not known.
    """
    for each in planned:
        if each.card.engine != hosted.NAME:
            raise UsageError(
                f"--batch: model {each.card.name} runs on engine {each.card.engine}, and only "
                f"models behind an API (engine {hosted.NAME}) are asked by batches; leave --batch "
                "out, or give that model a command of its own"
            )
        price = estimate.price(each.card.options(HostedOptions))
        if (price is None or price.batch is None) and not config.allow_unknown_price:
            raise UsageError(
                f"--batch: model {each.card.name}: its card has no price for batches "
                "(`price: {batch: 0.5}`), so its provider may have none; leave --batch out, or "
                "give --allow-unknown-price: batches then count at the full price"
            )


def check_none_open(folder: RunFolder, planned: Sequence[Pass]) -> None:
    """Whether single calls would ask nothing that a batch is asking already.

    Raises:
        UsageError: they might.
    """
    if any(each.card.engine == hosted.NAME for each in planned) and (found := at(folder).open()):
        raise UsageError(
            f"{folder.root.location}: {described(found)} would be asked and paid twice; give "
            f"--batch to go on with them, or `facescan abort {folder.root.location}` to cancel them"
        )


class Batches:
    """The batches of one run, in the hands of the one command that works on it; a context.

    Args:
        folder: of the run.
        session: of the command; names the parts of its journal.
        max_usd: what the run may cost in all; None: no bound.
        tell: is told of new replies: model and count by error kind.
        check: is called between looks; raises what makes the run end.
    """

    def __init__(
        self,
        folder: RunFolder,
        session: str,
        max_usd: float | None,
        console: Console,
        tell: Callable[[str, Mapping[str, int]], None],
        check: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._book = at(folder)
        self._max_usd = max_usd
        self._console = console
        self._tell = tell
        self._check = check
        self._journal = Journal(folder.replies, session, "batches")
        self._uncounted = Counter[tuple[str, str]]()
        self._records: dict[str, Record] = {}
        self._left: dict[str, int] = {}
        """Requests that a batch has left without a reply -> its round."""
        self._most_requests = provider_batches.MOST_REQUESTS
        self._queue_full = False
        self._priced = frozenset[str]()
        """Models whose price was known when this began."""
        self._desks: dict[tuple[str | None, str | None], Desk] = {}
        self._statuses: dict[str, str] = {}
        self._completed = 0
        self._in_vain = 0
        self._pause = FIRST_PAUSE_S
        self._aborting = False
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._loop = self._held.enter_context(asyncio.Runner())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._held:
            self._durable()
            for each in self._desks.values():
                each.close()
            if error is not None and self._records:
                open_now = list(self._records.values())
                most = sum(each.reserved_usd for each in open_now)
                self._line(
                    f"{described(open_now)}: this goes on without the command, and may cost up to "
                    f"${most:,.2f}: the same command again collects their answers, `facescan "
                    f"abort {self._folder.root.location}` cancels them"
                )

    def resume(self) -> None:
        """Take up what earlier commands have left, wherever they ended.

        Raises:
            FacescanError: see `serving.batches.Desk`.
        """
        for each in self._book.open():
            self._records[each.token] = each
        for each in list(self._records.values()):
            if each.stage in (Stage.MADE, Stage.UPLOADED):
                self._adopt(each)
            elif each.stage is Stage.SETTLED:
                self._clear(each)
        if self._records:
            self._line(f"going on with {described(list(self._records.values()))}")

    def ask(self, work: Work, to_ask: Sequence[tuple[Leg, Plan]]) -> None:
        """Ask what is open, and return when all of it has its reply.

        Raises:
            BudgetExhausted: the next request may cost more than is left.
            QuotaExhausted: a price has ended meanwhile, and the next is not known.
            RunStopped: something was cancelled elsewhere, the account has no money left, or the
                provider cannot be reached any more.
            AccessDenied: the provider refuses the key, or does not have the model.
            MixingError: these questions were answered by another model or server before.
        """
        for leg, _ in to_ask:
            before = record.answered_by(manifest.read(self._folder), leg)
            if before is not None:
                manifest.check_same(leg.card.name, before, _answered_by(leg.card))
        self._priced = frozenset(leg.card.name for leg, _ in to_ask if _has_price(leg.card))
        under_way = {key for each in self._records.values() for key in each.requests}

        def idle(key: str) -> bool:
            return key not in under_way

        wanted: Callable[[str], bool] = idle
        while True:
            self._ask_once(work, to_ask, wanted, 1 + max(self._left.values(), default=0))
            if not self._left:
                return
            wanted = frozenset(self._left).__contains__
            self._line(f"{len(self._left):,} requests came back without an answer: asked again")

    def abort(self) -> None:
        """Cancel everything, and collect what was answered by then.

        Raises:
            FacescanError: see `serving.batches.Desk`.
        """
        self._aborting = True
        for each in self._records.values():
            with self._known(each):
                self._desk(each.card).cancel(_submitted(each))
        while self._records:
            self._wait()

    # What is sent

    def _ask_once(
        self,
        work: Work,
        to_ask: Sequence[tuple[Leg, Plan]],
        wanted: Callable[[str], bool],
        number: int,
    ) -> None:
        """Put every wanted request into a batch, and collect all batches."""
        # Its requests are in batches of this round from now on, or taken up by the one that asks.
        self._left = {}
        with Preparation(work, self._unusable) as preparation:
            waiting = [(leg, Lines(preparation.lines(leg, plan, wanted))) for leg, plan in to_ask]
            while True:
                while waiting and len(self._records) < MOST_OPEN and not self._queue_full:
                    leg, lines = waiting[0]
                    if lines.peek() is None:
                        del waiting[0]
                    elif not self._submit(leg, lines, number):
                        break
                if not waiting and not self._records:
                    return
                if self._records:
                    self._wait()
                else:
                    self._no_room(waiting[0][1])

    def _no_room(self, lines: Lines) -> None:
        spent = ledger.spent(self._folder.ledger).total_usd
        following = lines.peek()
        raise BudgetExhausted(
            f"${spent:.4f} of the ${self._max_usd or 0:.2f} of --max-cost are spent or may be, and "
            f"the next request may cost ${following.usd if following else 0:.4f} in a batch"
        )

    def _submit(self, leg: Leg, lines: Lines, number: int) -> bool:
        """Fill a file, upload it and have it answered; False where no more can be paid for."""
        room = None
        if self._max_usd is not None:
            # Sums of many small amounts differ in the last digits by the order they are made in.
            room = self._max_usd - ledger.spent(self._folder.ledger).total_usd - 1e-9
        with self._book.storage.scratch() as scratch:
            path = scratch / "requests.jsonl"
            filled = provider_batches.fill(lines, path, self._most_requests, room)
            if not filled:
                return False
            if leg.card.name in self._priced and not _has_price(leg.card):
                raise QuotaExhausted(
                    f"{leg.card.name}: its price has ended, and the next is not known: write it "
                    "into the card (`price`), with its day"
                )
            each = Record(
                token=uuid.uuid4().hex,
                card=leg.card,
                questions=tuple(question.identity for question in leg.questions),
                round=number,
                made_at=datetime.now(UTC),
                count=len(filled),
                requests=filled,
                reserved_usd=sum(filled.values()),
            )
            self._put(each)
            money = Ledger(self._folder.ledger, _session(each), self._max_usd)
            self._loop.run(money.reserve(_RESERVATION, each.reserved_usd))
            desk = self._desk(leg.card)
            try:
                file_id = desk.upload(path, each.token)
                each = self._put(each, stage=Stage.UPLOADED, file_id=file_id)
                found = desk.create(file_id, each.token, each.made_at)
            except (UnreachableError, UncertainError, OSError):
                # It may be there: whoever resumes finds out.
                raise
            except FacescanError:
                # What was refused is nowhere; what was uploaded for it does not stay there.
                if each.file_id is None:
                    self._forget(each)
                else:
                    self._discard(each)
                raise
        each = self._put(each, stage=Stage.SUBMITTED, batch_id=found.id, status=found.status)
        self._line(
            f"{each.card.name}: batch {found.id} with {each.count:,} requests, at most "
            f"${each.reserved_usd:,.2f}"
        )
        self._pause = FIRST_PAUSE_S
        return True

    def _unusable(self, leg: Leg, key: str, image: BadImage) -> None:
        info = provider_batches.info(leg.card)
        self._take(leg.card, engines.failed(key, info, image, latency_s=0.0))

    # What is waited for

    def _wait(self) -> None:
        """Look at all batches once, and pause unless one of them was over."""
        self._check()
        open_before, completed = len(self._records), 0
        for each in list(self._records.values()):
            try:
                found = self._look(each)
            except UnreachableError as error:
                self._in_vain += 1
                if self._in_vain >= _LOOKS_IN_VAIN:
                    raise
                if self._in_vain == 1:
                    self._line(f"{error}. It is looked for again")
                break
            self._in_vain = 0
            completed += found.completed
            if self._statuses.get(each.token) != found.status:
                self._statuses[each.token] = found.status
                self._pause = FIRST_PAUSE_S
                self._line(
                    f"{each.card.name}: batch {found.id}: {found.status}, {found.completed:,} of "
                    f"{each.count:,} requests"
                )
            if found.over:
                self._finish(each, found)
                self._check()
        if len(self._records) == open_before:
            if completed > self._completed:
                self._line(
                    f"{described(list(self._records.values()))}, {completed:,} of them answered"
                )
            self._completed = completed
            provider_batches.pause(self._pause)
            self._pause = min(LONGEST_PAUSE_S, _GROWTH * self._pause)

    def _look(self, each: Record) -> Batch:
        with self._known(each):
            return self._desk(each.card).look(_submitted(each))

    @contextmanager
    def _known(self, each: Record) -> Iterator[None]:
        """Say what to do where the provider knows nothing of a batch."""
        try:
            yield
        except NotThereError as error:
            raise AccessDenied(
                f"{error}: this key's account has no such batch. Give the key of the project that "
                f"submitted it. If it is gone for good, delete {FOLDER}/{each.token}.json in the "
                "run folder: its requests are asked again, and what it may have cost stays in "
                "ledger/"
            ) from None

    def _finish(self, each: Record, found: Batch) -> None:
        """Collect what a batch that is over has brought, and clear it away."""
        if found.status == "failed":
            self._discard(each)
            self._failed(each, found)
            return
        stop = self._collect(each, found)
        self._queue_full = False
        self._clear(self._records[each.token])
        if stop is not None:
            raise stop
        if found.status == "cancelled" and not self._aborting:
            raise RunStopped(
                f"batch {found.id} was cancelled, and not by this run; what it had answered is "
                "kept. The same command again asks for the rest"
            )

    def _failed(self, each: Record, found: Batch) -> None:
        """The provider has not begun with a batch, for what it says is wrong with it."""
        codes = {code for code, _ in found.errors}
        why = "; ".join(": ".join(filter(None, each)) for each in found.errors[:_EXAMPLES])
        where = f"{each.card.name}: batch {found.id} was not begun: {why or 'no reason given'}"
        if self._aborting:
            return
        if codes & provider_batches.UNPAID:
            raise QuotaExhausted(where)
        if provider_batches.QUEUE_FULL not in codes:
            raise FacescanError(where)
        if each.count == 1 and not self._records:
            raise QuotaExhausted(where)
        self._queue_full = bool(self._records)
        self._most_requests = max(1, each.count // 2)
        # It was not asked: this round does not count.
        self._left |= dict.fromkeys(each.requests, each.round - 1)
        self._line(f"{where}. Batches are made smaller: at most {self._most_requests:,} requests")

    def _collect(self, each: Record, found: Batch) -> FacescanError | None:
        """Make the replies of a batch durable and settle what it has cost; why to stop, if so."""
        collected = Collected(each, found)
        desk = self._desk(each.card)
        with self._book.storage.scratch() as scratch:
            for file_id in found.results:
                path = scratch / "results.jsonl"
                try:
                    desk.download(file_id, path)
                except NotThereError as error:
                    self._line(f"{error}: its answers are lost, and count as paid")
                    collected.lost = True
                    continue
                for result in provider_batches.read(path, desk.secrets):
                    self._take_if(each.card, collected.reply(result))
        for reply in collected.given_up(self._aborting):
            self._take(each.card, reply)
        self._durable()
        self._left |= collected.left()
        record.add_worker(self._folder, _leg(self._folder, each), _report(each))
        usd = collected.usd()
        self._settle(each, usd)
        self._put(
            each,
            stage=Stage.SETTLED,
            status=found.status,
            results=found.results,
            file_id=each.file_id or found.input_file,
            cost_usd=usd,
            replied=collected.replied,
            unknown=len(collected.unknown),
            doubled=len(collected.doubled),
        )
        for what, keys in (
            ("name no request of it", collected.unknown),
            ("are about requests that had one", collected.doubled),
        ):
            if keys:
                examples = ", ".join(keys[:_EXAMPLES])
                self._line(f"batch {found.id}: {len(keys)} lines of results {what}: {examples}")
        return collected.stop

    # What is kept in order

    def _adopt(self, each: Record) -> None:
        """A batch of which is not known whether it was created."""
        desk = self._desk(each.card)
        found = desk.find(each.token, each.made_at)
        if found is None and each.file_id is not None:
            # If it was created and is not listed yet, it fails now, and does not cost.
            desk.delete(each.file_id)
            found = desk.find(each.token, each.made_at)
        if found is None:
            self._discard(each)
        else:
            self._put(
                each,
                stage=Stage.SUBMITTED,
                batch_id=found.id,
                file_id=each.file_id or found.input_file,
            )

    def _discard(self, each: Record) -> None:
        """A batch that the provider has not worked on: nothing of it stays there or is owed."""
        desk = self._desk(each.card)
        for file_id in {*desk.uploads(each.token), *filter(None, [each.file_id])}:
            desk.delete(file_id)
        self._forget(each)

    def _forget(self, each: Record) -> None:
        """A batch of which there is nothing at the provider."""
        self._settle(each, 0.0)
        self._close(each)

    def _clear(self, each: Record) -> None:
        """Delete the files of a batch whose replies are durable."""
        desk = self._desk(each.card)
        for file_id in filter(None, [each.file_id, *each.results]):
            desk.delete(file_id)
        self._close(each)

    def _close(self, each: Record) -> None:
        self._put(each, stage=Stage.CLOSED, requests={})
        del self._records[each.token]

    def _put(self, each: Record, **changes: object) -> Record:
        changed = each.model_copy(update=changes)
        self._book.write(changed)
        self._records[each.token] = changed
        return changed

    def _settle(self, each: Record, usd: float) -> None:
        money = Ledger(self._folder.ledger, _session(each), self._max_usd)
        self._loop.run(money.settle(_RESERVATION, usd))

    def _desk(self, card: ModelCard) -> Desk:
        options = card.options(HostedOptions)
        where = (options.base_url, options.api_key)
        if where not in self._desks:
            self._desks[where] = Desk(options)
        return self._desks[where]

    def _take_if(self, card: ModelCard, reply: Reply | None) -> None:
        if reply is not None:
            self._take(card, reply)

    def _take(self, card: ModelCard, reply: Reply) -> None:
        self._uncounted[card.name, reply.error_kind or ""] += 1
        if self._journal.append(reply):
            self._durable()

    def _durable(self) -> None:
        self._loop.run(self._journal.durable())
        for (name, kind), count in self._uncounted.items():
            self._tell(name, {kind: count})
        self._uncounted.clear()

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _session(each: Record) -> str:
    return f"batch-{each.token}"


def _has_price(card: ModelCard) -> bool:
    return estimate.price(card.options(HostedOptions)) is not None


def _submitted(each: Record) -> str:
    if each.batch_id is None:
        raise ValueError(f"batch {each.token} is {each.stage}, not submitted")
    return each.batch_id


def _answered_by(card: ModelCard) -> AnsweredBy:
    info = provider_batches.info(card)
    return AnsweredBy(
        engine=info.engine, resolved_model=info.resolved_model, numerics=info.numerics
    )


def _leg(folder: RunFolder, each: Record) -> Leg:
    """What a batch asked; whoever collects it may be another command than who submitted it."""
    asked = manifest.questions(manifest.read(folder))
    questions = tuple(question for question in asked if question.identity in each.questions)
    return Leg(each.card, None, questions, NO_ENGINES)


def _report(each: Record) -> Report:
    place = {"batch": _submitted(each), "server": hosted.server(each.card.options(HostedOptions))}
    return Report(_session(each), place, _answered_by(each.card))
