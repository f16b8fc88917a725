"""The arithmetic a plan needs, held against PyTorch's own count, and what is reported with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from voxstrata.base.errors import InputError, UsageError
from voxstrata.corpus import read_corpus
from voxstrata.encoders import Context, ModelFolder, open_model
from voxstrata.engine import Device, Runtime, extract
from voxstrata.engine.budget import EncoderSize, Work, sgemm_rate
from voxstrata.engine.planning import plan_corpus
from voxstrata.store import StoreSpec

FULL = Context("padded")


def test_a_padded_window_costs_what_torch_counts(tiny_checkpoint: Path, tiny_model: Path) -> None:
    """FlopCounterMode counts every convolution and matrix product that runs."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from voxstrata.exporters.checkpoint import load_checkpoint

    encoder = load_checkpoint(str(tiny_checkpoint)).encoder
    encoder.set_attn_implementation("eager")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 80, 3000))
    size = EncoderSize.of(open_model(tiny_model), ["final"])
    assert size.window_flops(1500, FULL) == counter.get_total_flops()


def test_cached_keys_cost_their_logits_and_their_share_of_the_values(tiny_model: Path) -> None:
    size = EncoderSize.of(open_model(tiny_model), ["final"])
    assert size.silence_keys == 32
    # 3 layers; 200 queries × 32 keys × d = 32; two products; a multiplication and an addition
    more = size.window_flops(200, Context("bucketed")) - size.window_flops(200, Context("trimmed"))
    assert more == 3 * 200 * 32 * 32 * 2 * 2
    assert size.window_flops(1500, Context("bucketed")) == size.window_flops(1500, FULL)  # no key is cached


def test_the_last_block_needs_only_the_positions_that_are_stored(tiny_model: Path) -> None:
    """Of the 100 it may leave out, d = 32, ffn = 128, 232 keys: query and output projections, both products of
    attention, the MLP."""
    size = EncoderSize.of(open_model(tiny_model), ["final"])
    less = size.window_flops(200, Context("bucketed")) - size.window_flops(200, Context("bucketed"), 100)
    assert less == 100 * 2 * (2 * 32**2 + 2 * 232 * 32 + 2 * 32 * 128)


def test_an_uncondensed_cache_has_a_key_for_every_position(tiny_model: Path) -> None:
    size = EncoderSize(layers=1, d_model=32, ffn=128, n_mels=80, silence_keys=0)
    more = size.window_flops(200, Context("bucketed")) - size.window_flops(200, Context("trimmed"))
    assert more == 200 * 1300 * 32 * 2 * 2


def test_layers_beyond_the_deepest_output_are_not_needed(tiny_model: Path) -> None:
    model = open_model(tiny_model)
    assert [EncoderSize.of(model, [o]).layers for o in model.card.outputs] == [0, 1, 2, 3, 3]
    assert EncoderSize.of(model, ["layer_00", "layer_02"]).layers == 2


def test_a_run_reports_the_arithmetic_of_its_plan_and_a_resumed_one_of_what_was_left(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    corpus = make_corpus({"en/a": 1.3, "en/b": 4.0, "de/c": 33.0, "de/d": 29.5})
    model = open_model(tiny_model)
    for mode in ("padded", "bucketed", "trimmed"):
        spec = StoreSpec(context=Context(mode))
        plan = plan_corpus(read_corpus(corpus), model, spec)
        work = Work.of(plan, EncoderSize.of(model, model.card.outputs))
        store = tmp_path / f"{mode}.zarr"
        assert extract(corpus, model, store, spec).flops == work.flops
        assert work.windows == 5  # 33 s are two
        assert extract(corpus, model, store, spec).flops == 0
    # padded: 5 windows of 1500; else 65 + 50 → 125, 200 + 50 → 250, 150 + 50 → 200, and twice 1500
    assert Work.of(plan, EncoderSize.of(model, ["final"])).tokens == 125 + 250 + 200 + 2 * 1500


def test_efficiency_is_the_arithmetic_by_the_wall_time_at_the_rate_of_matrix_products(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    corpus = make_corpus({"a": 1.0})
    report = extract(corpus, tiny_model, tmp_path / "s.zarr", runtime=Runtime(threads=1), efficiency=True)
    assert report.sgemm_rate is not None
    assert report.efficiency == pytest.approx(report.flops / report.seconds / report.sgemm_rate)
    plain = extract(corpus, tiny_model, tmp_path / "t.zarr", runtime=Runtime(threads=1))
    assert (plain.sgemm_rate, plain.efficiency) == (None, None)


def test_efficiency_is_not_to_be_had_on_a_gpu(
    make_corpus: Callable[..., Path], tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="GPU"):
        extract(
            make_corpus({"a": 1.0}), tiny_model, tmp_path / "s.zarr", runtime=Runtime(Device("cuda")), efficiency=True
        )


def test_a_config_without_the_mlps_width_is_an_input_error(tiny_model: Path, tmp_path: Path) -> None:
    card = open_model(tiny_model).card
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json.*encoder_ffn_dim.*export"):
        EncoderSize.of(ModelFolder(tmp_path, card), ["final"])


def test_matrix_products_run_at_a_believable_rate() -> None:
    assert 1e8 < sgemm_rate(1) < 1e14  # operations per second: any CPU there is
