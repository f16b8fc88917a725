"""The silence cache is what it says: means over groups, counts as logs, means over padded runs."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from conftest import sound

torch = pytest.importorskip("torch")
from voxstrata.base.errors import InputError  # noqa: E402
from voxstrata.encoders.silence import EMPTY_GROUP_LOGIT, BucketSilence, SilenceKeys, load_silence  # noqa: E402
from voxstrata.exporters import bucket_silence, silence_cache  # noqa: E402
from voxstrata.exporters.bucket_silence import make_silence  # noqa: E402
from voxstrata.exporters.checkpoint import Checkpoint, load_checkpoint  # noqa: E402
from voxstrata.exporters.pytorch import Attention, each_attention, queries_keys_values  # noqa: E402
from voxstrata.exporters.silence_cache import Queries, condense, kmeans, run_on_recordings, run_on_silence  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_checkpoint))


def test_what_a_layer_gives_is_not_held_while_the_next_ones_run(checkpoint: Checkpoint) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def take(layer: int, *found: torch.Tensor) -> None:
        assert layer == len(held)
        assert layer < 2 or held[layer - 2]() is None  # the one before may still be in a caller's frame
        held.append(weakref.ref(found[1]))

    each_attention(checkpoint.encoder, features(checkpoint, sound(3.0, 99)), take)
    assert len(held) == 3


def features(checkpoint: Checkpoint, audio: Array) -> torch.Tensor:
    """Log-mel of a padded window."""
    found = checkpoint.extractor(audio, sampling_rate=16_000, return_tensors="pt")["input_features"]
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("frames", [75, 76, 500, 1100, 1498, 1499])
def test_a_condensed_key_is_the_mean_of_its_group_and_its_logit_the_log_of_its_size(
    checkpoint: Checkpoint, frames: int
) -> None:
    silence, _ = condense(run_on_silence(checkpoint), 24)
    assert silence.group is not None
    got = silence.for_frames(frames)
    assert got.key.shape == got.value.shape == (3, 4, 24, 8)
    assert got.bias.shape == (3, 4, 24)
    assert {a.dtype for a in (got.key, got.value, got.bias)} == {np.dtype("float32")}
    for layer in range(3):
        for head in range(4):
            for g in range(24):
                members = [p for p in range(frames, 1500) if silence.group[layer, head, p - silence.first] == g]
                if not members:
                    assert got.bias[layer, head, g] == EMPTY_GROUP_LOGIT
                    continue
                at = [p - silence.first for p in members]
                for a, b in ((got.key, silence.key), (got.value, silence.value)):
                    want = b[layer, head, at].astype(np.float64).mean(0)
                    np.testing.assert_allclose(a[layer, head, g], want, rtol=1e-5, atol=1e-5)
                assert got.bias[layer, head, g] == pytest.approx(np.log(len(members)), abs=1e-6)


def test_uncondensed_the_positions_are_kept_one_by_one(checkpoint: Checkpoint) -> None:
    silence, account = condense(run_on_silence(checkpoint), 0)
    assert silence.group is None
    assert account["groups"] == 0
    log_mel = torch.full((1, 80, 3000), -0.75)
    for frames in (75, 800, 1499):
        got = silence.for_frames(frames)
        _, key, value = queries_keys_values(checkpoint.encoder, log_mel)
        np.testing.assert_allclose(got.key, key[:, :, frames:].numpy(), atol=2e-3)  # kept as float16
        np.testing.assert_allclose(got.value, value[:, :, frames:].numpy(), atol=2e-3)
        assert not got.bias.any()


def test_attention_received_is_what_hugging_face_pays(checkpoint: Checkpoint) -> None:
    """Mean over all queries of the softmax weights that the encoder itself reports."""
    log_mel = features(checkpoint, sound(3.0, 1))
    query, key, _ = queries_keys_values(checkpoint.encoder, log_mel)
    encoder = checkpoint.encoder
    before = encoder.config._attn_implementation
    encoder.config._attn_implementation = "eager"  # the others keep no weights
    try:
        with torch.inference_mode():
            paid = encoder(log_mel, output_attentions=True).attentions
    finally:
        encoder.config._attn_implementation = before
    got = Queries.sample(query, key, 1500).attention(key)
    assert got.shape == (3, 4, 1500)
    for layer in range(3):
        np.testing.assert_allclose(got[layer].numpy(), paid[layer][0].mean(1).numpy(), rtol=1e-3)


def test_distance_of_keys_is_the_mean_square_of_the_logits_difference() -> None:
    rng = np.random.default_rng(0)
    query, key, other = (rng.standard_normal((2, 3, n, 8)) for n in (50, 5, 5))
    queries = Queries(torch.from_numpy(query), torch.zeros(2, 3, 50))
    got = (torch.from_numpy(key - other) @ queries.metric()).square().sum(-1)
    want = [
        [[np.mean([(q @ (k - o)) ** 2 for q in query[i, j]]) for k, o in zip(key[i, j], other[i, j], strict=True)]
        for j in range(3)]
        for i in range(2)
    ]  # fmt: skip
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-9)


def test_k_means_ends_where_every_point_is_nearest_to_the_weighted_mean_of_its_group() -> None:
    rng = np.random.default_rng(1)
    points, weight = rng.standard_normal((2, 60, 3)), rng.uniform(0, 1, (2, 60)) ** 4
    group = kmeans(torch.from_numpy(points).float(), torch.from_numpy(weight).float(), 4).numpy()
    for head in range(2):
        means = [np.average(points[head][group[head] == g], 0, weight[head][group[head] == g]) for g in range(4)]
        distance = np.linalg.norm(points[head][:, None] - means, axis=-1)
        np.testing.assert_array_equal(distance.argmin(1), group[head])


def test_groups_keep_the_logits_better_than_neighbours_do(checkpoint: Checkpoint) -> None:
    """On the speech of a recording that the cache was not made from, weighted by the attention it pays."""
    silence, _ = condense(run_on_recordings(checkpoint, [(f"r{i}", sound(2.0 + i, i)) for i in range(6)]), 24)
    assert silence.group is not None
    query, key, _ = queries_keys_values(checkpoint.encoder, features(checkpoint, sound(3.0, 99)))
    runs = np.arange(1200) * 24 // 1200

    def error(logits: Array, paid: Array, groups: Array) -> float:
        found = 0.0
        for g in np.unique(groups):
            own = groups == g
            found += (paid[:, own] * (logits[:, own] - logits[:, own].mean(1, keepdims=True)) ** 2).sum()
        return found

    for layer in range(3):
        for head in range(4):
            asked = query[layer, head, :200].numpy().astype(np.float64)
            points = silence.key[layer, head, 225:].astype(np.float64)
            logits = asked @ points.T
            paid = np.exp(logits) / np.exp(asked @ key[layer, head].numpy().astype(np.float64).T).sum(1, keepdims=True)
            grouped = error(logits, paid, silence.group[layer, head, 225:])
            assert grouped < error(logits, paid, runs)


def test_frames_before_the_cache_are_refused(checkpoint: Checkpoint) -> None:
    silence, _ = condense(run_on_silence(checkpoint), 4)
    with pytest.raises(InputError, match="begins at frame 75, a bucket ends at 50"):
        silence.for_frames(50)


def test_a_calibrated_cache_is_the_mean_over_padded_runs_behind_the_speech(checkpoint: Checkpoint) -> None:
    recordings = [(f"r{i}", sound(s, i)) for i, s in enumerate((2.0, 10.0, 0.5, 6.0))]
    got, account = condense(run_on_recordings(checkpoint, recordings), 0)
    # cuts of 25 … 450 frames in equal steps, none longer than its recording; a second later counting begins
    cuts = [25, min(166, 500), min(308, 25), min(450, 300)]
    total = [np.zeros((3, 4, 1500, 8)), np.zeros((3, 4, 1500, 8))]
    count = np.zeros(1500)
    for (_, audio), cut in zip(recordings, cuts, strict=True):
        _, *kv = queries_keys_values(checkpoint.encoder, features(checkpoint, audio[: cut * 320]))
        for t, new in zip(total, kv, strict=True):
            t[:, :, cut + 50 :] += new.numpy()[:, :, cut + 50 :]
        count[cut + 50 :] += 1
    assert count[75] >= 1
    for a, t in zip((got.key, got.value), total, strict=True):
        np.testing.assert_allclose(a, t[:, :, 75:] / count[75:, None], rtol=1e-3, atol=1e-3)  # kept as float16
    assert [r["name"] for r in account["recordings"]] == ["r0", "r1", "r2", "r3"]


def test_a_calibrated_cache_is_nearer_to_padding_than_a_pure_one(checkpoint: Checkpoint) -> None:
    """On a recording it was not made from."""
    others = [(f"r{i}", sound(2.0 + i, i)) for i in range(6)]
    want = queries_keys_values(checkpoint.encoder, features(checkpoint, sound(3.0, 99)))[1][:, :, 300:].numpy()
    distance = {}
    for kind, silence in (
        ("pure", condense(run_on_silence(checkpoint), 0)[0]),
        ("calibrated", condense(run_on_recordings(checkpoint, others), 0)[0]),
    ):
        distance[kind] = float(np.linalg.norm(silence.for_frames(300).key - want))
    assert distance["calibrated"] < distance["pure"]


def test_a_cache_survives_its_file_and_a_damaged_one_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for groups in (0, 8):
        silence, _ = condense(run_on_silence(checkpoint), groups)
        path = tmp_path / f"{groups}.npz"
        silence.save(path)
        assert load_silence(path).sha256() == silence.sha256()
        data = path.read_bytes()
        for cut in (0, 10, len(data) // 2):
            path.write_bytes(data[:cut])
            with pytest.raises(InputError, match=r"not a readable silence cache"):
                load_silence(path)


@pytest.mark.parametrize("groups", [0, 24])
def test_a_full_window_has_no_cached_keys(checkpoint: Checkpoint, groups: int) -> None:
    silence, _ = condense(run_on_silence(checkpoint), groups)
    got = silence.for_frames(1500)
    assert got.key.shape == got.value.shape == (3, 4, 0, 8)
    assert got.bias.shape == (3, 4, 0)
    assert silence.keys(1500) == 0


@pytest.fixture
def by_bucket(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> tuple[BucketSilence, dict[str, Any]]:
    monkeypatch.setattr(bucket_silence, "silence_buckets", lambda: (75, 100, 1000))
    silence, account = make_silence(checkpoint, [(f"r{i}", sound(0.6 + i, i)) for i in range(3)], 8)
    assert isinstance(silence, BucketSilence)
    return silence, account


def test_a_buckets_keys_are_of_runs_whose_speech_ends_just_before_it(
    checkpoint: Checkpoint, by_bucket: tuple[BucketSilence, dict[str, Any]]
) -> None:
    """Groups weighted by their sizes give the mean over all positions and the runs of the last two buckets."""
    silence, account = by_bucket
    sounds = [sound(0.6 + i, i) for i in range(3)]
    assert account["buckets"] == [75, 100, 1000]
    # four runs of the first bucket and two of each other, which end half way from the bucket before, and at its end
    for bucket, first_run, lengths in ((100, 2, [18, 25, 37, 50]), (1000, 4, [37, 50, 500, 950])):
        at = account["buckets"].index(bucket)
        mean = [np.zeros((3, 4, 8)), np.zeros((3, 4, 8))]
        for run, frames in enumerate(lengths, first_run):
            speech = np.concatenate([sounds[(run + i) % 3] for i in range(40)])[: frames * 320]
            _, *kv = queries_keys_values(checkpoint.encoder, features(checkpoint, speech))
            mean = [m + t[:, :, bucket:].numpy().mean(2) / 4 for m, t in zip(mean, kv, strict=True)]
        got = silence.for_frames(bucket)
        size = np.exp(silence.bias[at].astype(np.float64))
        np.testing.assert_allclose(size.sum(-1), 1500 - bucket, rtol=1e-5)
        for keys, expected in zip((got.key, got.value), mean, strict=True):
            found = (keys * size[..., None]).sum(2) / size.sum(-1)[..., None]
            np.testing.assert_allclose(found, expected, atol=3e-3)  # kept as float16


def test_between_buckets_the_nearest_one_serves_for_the_positions_that_are_left(
    by_bucket: tuple[BucketSilence, dict[str, Any]], tmp_path: Path
) -> None:
    by_bucket[0].save(tmp_path / "s.npz")
    silence = load_silence(tmp_path / "s.npz")
    assert silence.sha256() == by_bucket[0].sha256() == by_bucket[1]["sha256"]
    near, between = silence.for_frames(100), silence.for_frames(110)
    np.testing.assert_array_equal(between.key, near.key)
    np.testing.assert_allclose(np.exp(between.bias).sum(-1), 1390, rtol=1e-5)
    assert silence.keys(110) == near.bias.shape[2] == 8
    empty = silence.for_frames(1500)
    assert (silence.keys(1500), empty.key.shape, empty.bias.shape) == (0, (3, 4, 0, 8), (3, 4, 0))
    with pytest.raises(InputError, match="begins at frame 75, a bucket ends at 74"):
        silence.for_frames(74)


class TestARegister:
    """A made-up encoder of one head, in which one silent position is a register: all attention is paid to it, and its
    value differs from that of the others. Which position it is depends on where the speech ends."""

    @pytest.fixture
    def checkpoint(self, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
        def planted(_: object, frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            query, key, value = torch.zeros(3, 1, 1, 1500, 4)
            register = 900 if frames < 500 else 1100 if frames < 1000 else 1300
            query[..., 0] = 8
            key[..., register, 0] = 1.5  # exp(12) against 1500 positions of exp(0)
            value[..., 2] = 1
            value[..., register, :] = torch.tensor([0.0, 1.0, 0.0, 0.0])
            return query, key, value

        def each(encoder: object, frames: int, take: Attention) -> None:
            for layer, found in enumerate(zip(*planted(encoder, frames), strict=True)):
                take(layer, *found)

        monkeypatch.setattr(bucket_silence, "silence_buckets", lambda: (75, 500, 950, 1000))
        monkeypatch.setattr(bucket_silence, "each_attention", each)
        monkeypatch.setattr(silence_cache, "queries_keys_values", planted)
        return cast(Checkpoint, SimpleNamespace(encoder=None, features=lambda samples: len(samples) // 320))

    @staticmethod
    def cosine(keys: SilenceKeys, frames: int) -> float:
        """Of what a frame takes from the silence, to the same in the padded run of speech that ends at 940."""
        logits = 8 * keys.key[0, 0, :, 0].astype(np.float64) + keys.bias[0, 0]
        paid = np.exp(logits) / (frames + np.exp(logits).sum())  # computed positions have values of zero
        taken, expected = paid @ keys.value[0, 0], np.array([0, np.exp(12), 1500 - frames - 1, 0])
        return float(taken @ expected / np.linalg.norm(taken) / np.linalg.norm(expected))

    recordings = tuple((str(i), np.zeros(9 * 16_000, np.float32)) for i in range(4))

    def test_a_cache_for_all_lengths_lacks_it(self, checkpoint: Checkpoint) -> None:
        whole, _ = condense(run_on_recordings(checkpoint, self.recordings), 0)
        assert self.cosine(whole.for_frames(1000), 1000) < 0.1

    def test_averaged_away_it_is_lost_in_its_own_bucket_too(self, checkpoint: Checkpoint) -> None:
        silence, _ = make_silence(checkpoint, self.recordings, 1)
        assert self.cosine(silence.for_frames(1000), 1000) < 0.1

    def test_as_a_key_of_its_own_in_its_bucket_it_is_kept(self, checkpoint: Checkpoint) -> None:
        silence, _ = make_silence(checkpoint, self.recordings, 4)
        assert self.cosine(silence.for_frames(1000), 1000) > 0.999
