"""A KV page allocator without device kernels.

SGLang's paged allocator lays tokens out with two Triton kernels. Here the same layout is computed
with torch operators, by SGLang's own reference function.
"""

from typing import Any

import torch
from sglang.srt.mem_cache.allocator.paged import PagedTokenToKVPoolAllocator, alloc_extend_naive
from sglang.srt.utils import get_num_new_pages


class HostPagedAllocator(PagedTokenToKVPoolAllocator):
    """``PagedTokenToKVPoolAllocator`` on host memory; slot 0 stays the padding slot."""

    free_pages: torch.Tensor

    def alloc_extend(
        self,
        prefix_lens: torch.Tensor,
        prefix_lens_cpu: torch.Tensor,
        seq_lens: torch.Tensor,
        seq_lens_cpu: torch.Tensor,
        last_loc: torch.Tensor,
        extend_num_tokens: int,
        num_new_pages: int | None = None,
    ) -> torch.Tensor | None:
        """Allocate the slots of a batch that extends its requests.

        Args:
            prefix_lens: int64 [requests], tokens that each request has already.
            prefix_lens_cpu: the same on the host.
            seq_lens: int64 [requests], tokens that each request will have.
            seq_lens_cpu: the same on the host.
            last_loc: int64 [requests], slot of each request's last present token, -1 for none.
            extend_num_tokens: the sum of ``seq_lens - prefix_lens``.
            num_new_pages: pages that the batch opens, counted here when not given.

        Returns:
            int64 [extend_num_tokens] slots, or ``None`` when too few pages are free.
        """
        if num_new_pages is None:
            num_new_pages = get_num_new_pages(
                seq_lens=seq_lens_cpu, page_size=self.page_size, prefix_lens=prefix_lens_cpu
            )
        return self._lay_out(prefix_lens, seq_lens, last_loc, extend_num_tokens, num_new_pages)

    def alloc_decode(
        self, seq_lens: torch.Tensor, seq_lens_cpu: torch.Tensor, last_loc: torch.Tensor
    ) -> torch.Tensor | None:
        """Allocate one slot a request; ``seq_lens`` counts the new token. See ``alloc_extend``."""
        # Not the function's shortcut for decoding, which opens no pages of one token.
        num_new_pages = get_num_new_pages(
            seq_lens=seq_lens_cpu, page_size=self.page_size, prefix_lens=seq_lens_cpu - 1
        )
        return self._lay_out(seq_lens - 1, seq_lens, last_loc, len(seq_lens), num_new_pages)

    def _lay_out(
        self,
        prefix_lens: torch.Tensor,
        seq_lens: torch.Tensor,
        last_loc: torch.Tensor,
        num_tokens: int,
        num_new_pages: int,
    ) -> Any:
        if num_new_pages > len(self.free_pages):
            self.merge_and_sort_free()
        if num_new_pages > len(self.free_pages):
            return None
        slots = torch.empty(num_tokens, dtype=torch.int64, device=self.device)
        alloc_extend_naive(
            prefix_lens.to(torch.int64),
            seq_lens.to(torch.int64),
            last_loc.to(torch.int64),
            self.free_pages,
            slots,
            self.page_size,
            self.device,
        )
        self.free_pages = self.free_pages[num_new_pages:]
        return slots
