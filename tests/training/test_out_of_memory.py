"""When memory runs out, the message says what is large and what helps."""

from __future__ import annotations

import pytest
import torch

from kunlun.training.out_of_memory import BatchSizes, explained, is_out_of_memory
from tests.support import toy_batch, toy_schema
from tests.training.test_module import Linear


def error_of_the_cpu() -> RuntimeError:
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    return error.value


def test_what_torch_raises_is_recognised() -> None:
    assert is_out_of_memory(error_of_the_cpu())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


def test_the_message_has_the_batch_the_sequences_the_tables_and_three_settings() -> None:
    schema, sizes = toy_schema(), BatchSizes()
    sizes.on_train_batch_start(None, None, toy_batch(schema, 6, torch.Generator().manual_seed(0), torch.arange(6)), 0)
    text = str(explained(error_of_the_cpu(), schema, Linear(schema), sizes.text))
    assert "4.0 PiB" in text or "4,096.0 TiB" in text
    assert "6 rows; 15 view events, the longest history 5; 15 buy events, the longest history 5" in text
    assert "item 200 rows, shop 20 rows, device 5 rows; all tables 800 bytes" in text
    for setting in ("data.batch_size", "data.max_length", "model.embedding.width"):
        assert setting in text


def test_that_of_a_gpu_says_how_much_was_wanted() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity")
    assert "2.50 GiB more were wanted of the GPU's memory" in str(explained(error, None, None, ""))
