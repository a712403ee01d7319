"""What one rank of a server that decodes itself does around SGLang's decode batches.

Prompts that chunk tasks have computed join them, chunks leave them their share of the time, and
tasks that only wait leave them their slots.
"""

from __future__ import annotations

import logging
from typing import Any

from sglang_cdsp.engine.chunk_engine import ChunkEngine
from sglang_cdsp.engine.copying import Copying
from sglang_cdsp.engine.coroutines import Coroutines
from sglang_cdsp.engine.decode_share import DecodeShare
from sglang_cdsp.engine.joining import Joining, SlotReports
from sglang_cdsp.engine.moving import Moving
from sglang_cdsp.engine.stock import RankScheduler

logger = logging.getLogger(__name__)


class Decoding:
    """Decode beside the chunk tasks of one rank."""

    def __init__(
        self,
        scheduler: RankScheduler,
        engine: ChunkEngine,
        coroutines: Coroutines,
        joining: Joining,
        moving: Moving,
        copying: Copying,
        slots: SlotReports,
    ) -> None:
        """Nobody decodes yet.

        Args:
            scheduler: SGLang's scheduler of this rank.
            engine: runs its chunk tasks.
            coroutines: what chunks run in; their stretch now is the one while nobody decodes.
            joining: computed prompts on their way into SGLang's running batch.
            moving: takes running requests to other instances, and from them.
            copying: takes cached prefixes to other instances, and from them.
            slots: tells the controller what SGLang's own requests hold.
        """
        self._scheduler = scheduler
        self._engine = engine
        self._coroutines = coroutines
        self._joining = joining
        self.moving = moving
        self.copying = copying
        self._slots = slots
        self._share = DecodeShare(coroutines.stretch_s)

    @property
    def waits(self) -> bool:
        """Whether computed prompts wait for a row."""
        return bool(self._joining)

    @property
    def decodes(self) -> bool:
        """Whether requests wait for their next token here."""
        return bool(self._scheduler.running_batch.reqs)

    def abort(self, rid: str, *, everything: bool) -> None:
        """End requests that have no row yet and whose id begins with ``rid``, or all of them."""
        self._joining.abort(rid, everything=everything)

    def stepped(self, seconds: float) -> None:
        """A decode step took so long."""
        self._share.stepped(seconds)

    # -- around the engine's turn ---------------------------------------------------------

    def take_results_in(self) -> bool:
        """With overlap: tokens of the last batch do not wait for a chunk's stretch.

        As SGLang itself does before a pause, after which its loop must find no last batch. Where a
        request has penalties they wait: at each step SGLang counts the last token that it knows,
        and would miss one and count another twice.

        Returns:
            Whether there were results.
        """
        scheduler = self._scheduler
        last_batch: Any = getattr(scheduler, "last_batch", None)
        due = bool(scheduler.enable_overlap and last_batch and self._engine.computes)
        due = due and not last_batch.sampling_info.penalizer_orchestrator.is_required
        if due:
            scheduler.process_batch_result(*scheduler.result_queue.popleft())
        return due

    def pace_chunks(self, *, decodes: bool) -> None:
        """Let chunks go on for as long as their decode share allows.

        Args:
            decodes: whether requests wait for their next token.
        """
        share = self._engine.decode_share
        self._coroutines.stretch_s = self._share.stretch_s(share, decodes=decodes)

    def admit(self, running: Any) -> Any:
        """SGLang's running batch, without who has left and with who has joined meanwhile."""
        self.moving.take_out(running)
        return self._joining.admit(running)

    def tell_slots(self) -> None:
        """Tell the controller what SGLang's own requests hold, if it is new."""
        self._slots.tell(self._engine.held_tokens, self._share.step_s)

    # -- when slots are short -------------------------------------------------------------

    def give_slots(self, batch: Any) -> bool:
        """Before SGLang retracts anybody: tasks that only wait give their slots back.

        The only request that decodes is retracted, too, while chunk tasks hold slots that will be
        free: stock would end it, as nobody else in its batch has any.

        Args:
            batch: SGLang's, that is to decode next.

        Returns:
            Whether ``batch`` was emptied that way.
        """
        if not self._is_short(batch):
            return False
        self._engine.give_back()
        batch.filter_batch()
        alone = len(batch.reqs) == 1 and self._engine.held_tokens
        if not alone or batch.check_decode_mem():
            return False
        self._retract_only(batch)
        return True

    def _is_short(self, batch: Any) -> bool:
        """Whether the next decode step does not find its slots, with all of the cache evicted."""
        allocator = self._scheduler.token_to_kv_pool_allocator
        short = allocator.available_size() < len(batch.reqs) * allocator.page_size
        return short and not batch.check_decode_mem()

    def _retract_only(self, batch: Any) -> None:
        """Take the only request out of a decode batch; it waits and is prefilled again."""
        (req,) = batch.reqs
        batch.release_req(0, 0)
        batch.filter_batch(keep_indices=[])
        batch.batch_is_full = False
        logger.info("request %s waits for slots that chunk tasks hold", req.rid)
        self._scheduler._add_request_to_queue(req, is_retracted=True)
