"""A bundle is what was written or a BundleError: nothing between."""

import hashlib
import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtdsae import bundle
from rtdsae.bundle import FILES, Manifest, Output, StatePart, load, write
from rtdsae.errors import BundleError

S, T, C, U = 4, 20, 3, 2
SHAPES = {"factors": (5,), "z": (2,), "f": (3,), "rates": (C,), "behaviour": (2,)}
MANIFEST = Manifest(
    name="tiny-1.0",
    family="lfads",
    config={"hidden": 8, "dropout": 0.1, "nested": {"note": "µ"}},
    channels=["a", "b", "c"],
    bin_width_s=0.02,
    anchor_bins=S,
    horizon_bins=10,
    lanes=2,
    external=["cue x", "cue y"],
    outputs=[Output(name=name, shape=list(shape)) for name, shape in SHAPES.items()],
    state=[StatePart(name="generator", size=8), StatePart(name="z", size=2)],
    normalisation={},
    sessions=["day 1"],
    provenance={"seed": 1},
    scores={"co_bps": 0.25, "r2": None},
)


def golden_arrays():
    rng = np.random.default_rng(0)
    shapes = {"x": (T, C), "observed": (T,), "u": (T, U)} | {k: (T - S, *shape) for k, shape in SHAPES.items()}
    return {name: rng.random(shape).astype(np.float32) for name, shape in shapes.items()}


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


CONTENT = {
    "anchor.onnx": bytes(range(256)),
    "step.onnx": b"step" * 50,
    "golden.npz": npz(**golden_arrays()),
    "MODEL_CARD.md": b"# tiny\n",
}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "tiny", MANIFEST, CONTENT)
    return tmp_path / "tiny"


def reseal(folder, **changes):
    """What a hostile author would do: a manifest of their own, with hashes that are right."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}
    manifest |= {"files": changes.get("files", hashes), "manifest_sha256": "0" * 64}
    text = json.dumps(manifest)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(text.replace("0" * 64, digest))


def refusal(folder):
    with pytest.raises(BundleError) as caught:
        load(folder).golden()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert len(message) < 500
    return message


def test_what_was_written_is_loaded(folder, tmp_path):
    loaded = load(folder)
    assert loaded.files == CONTENT
    assert loaded.path == folder
    expected = json.loads(json.dumps({f: getattr(MANIFEST, f) for f in ("config", "channels", "lanes", "scores")}))
    assert {f: getattr(loaded.manifest, f) for f in expected} == expected
    assert loaded.manifest.outputs == MANIFEST.outputs
    assert loaded.manifest.state_size == 10
    assert loaded.manifest.output("z").shape == [2]
    with pytest.raises(BundleError, match=r"no output 'y'.*factors, z, f, rates, behaviour"):
        loaded.manifest.output("y")
    for name, array in loaded.golden().items():
        np.testing.assert_array_equal(array, golden_arrays()[name])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


def test_hashes_are_those_that_anybody_can_compute(folder):
    text = (folder / "manifest.json").read_text()
    manifest = json.loads(text)
    assert manifest["files"] == {n: hashlib.sha256(c).hexdigest() for n, c in CONTENT.items()}
    digest = manifest["manifest_sha256"]
    assert hashlib.sha256(text.replace(digest, "0" * 64).encode()).hexdigest() == digest == load(folder).hash


def test_the_same_content_has_the_same_hash(folder, tmp_path):
    write(tmp_path / "again", MANIFEST, CONTENT)
    assert load(tmp_path / "again").hash == load(folder).hash


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sealed") / "tiny"
    write(folder, MANIFEST, CONTENT)
    return folder


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
@settings(deadline=None)
@given(data=st.data())
def test_any_one_byte_changed_is_refused(sealed, name, data):
    original = (sealed / name).read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    change = data.draw(st.integers(1, 255))
    altered = bytearray(original)
    altered[at] ^= change
    try:
        (sealed / name).write_bytes(altered)
        refusal(sealed)
    finally:
        (sealed / name).write_bytes(original)


def test_every_byte_of_the_manifest_counts(sealed):
    original = (sealed / "manifest.json").read_bytes()
    try:
        for at in range(len(original)):
            altered = bytearray(original)
            altered[at] ^= 0x20  # upper case for lower: the change that JSON and hex digits may not mind
            (sealed / "manifest.json").write_bytes(altered)
            with pytest.raises(BundleError):
                load(sealed)
    finally:
        (sealed / "manifest.json").write_bytes(original)


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
@pytest.mark.parametrize("keep", [0, 1, -1])
def test_truncated_files_are_refused(folder, name, keep):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:keep])
    refusal(folder)


@pytest.mark.parametrize("name", ["manifest.json", *FILES])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"{name}: is missing" in refusal(folder)


def test_a_newer_format_is_recognised_before_anything_else(folder):
    (folder / "manifest.json").write_text('{"format": 2, "shape of things to come": []}')
    (folder / "step.onnx").unlink()
    assert "bundle format 2, this rtdsae reads 1: upgrade rtdsae" in refusal(folder)


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", '{"format": "1"}', '{"format": 1}', "[" * 100_000, "\ufffe"])
def test_a_manifest_that_is_none_is_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    assert "manifest" in refusal(folder)


def test_what_is_no_folder_is_refused(folder, tmp_path):
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "no such folder" in refusal(folder / "manifest.json")
    assert "manifest.json: is missing" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../step.onnx", "/etc/passwd", "a/b.onnx", "step.onnx\0", ""])
def test_a_manifest_that_names_other_files_is_refused(folder, name):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    reseal(folder, files=files | {name: "1" * 64})
    assert "files must be anchor.onnx" in refusal(folder)


@pytest.mark.parametrize("name", ["manifest.json", "step.onnx"])
def test_links_and_pipes_are_not_followed(folder, tmp_path, name):
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert f"{name}: is not a regular file" in refusal(folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert f"{name}: is not a regular file" in refusal(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{name}: is not a regular file" in refusal(folder)


def test_a_file_that_is_no_part_of_it_is_refused(folder):
    (folder / ".DS_Store").touch()
    load(folder)
    (folder / "weights\n.bin").touch()
    assert r"'weights\n.bin' is no part of a bundle" in refusal(folder)


@pytest.mark.parametrize(("name", "limit"), [("manifest.json", bundle.MAX_MANIFEST), ("step.onnx", bundle.MAX_FILE)])
def test_oversized_files_are_refused_unread(folder, name, limit):
    os.truncate(folder / name, limit + 1)  # sparse: takes no disk
    assert f"has {limit + 1} bytes" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"format": 0}, "format 0 does not exist"),
        ({"name": "../evil"}, "name must be letters"),
        ({"channels": ["a", "a", "b"]}, "channels must be"),
        ({"channels": ["a", "b", "c\x1b[2J"]}, "must be printable"),
        ({"channels": [f"c{i}" for i in range(C + 1)]}, "output rates must have a value for each channel"),
        ({"bin_width_s": 0.0}, "bin_width_s must be above 0"),
        ({"lanes": 0}, "must be 1 or more"),
        ({"outputs": []}, "must have factors and rates"),
        ({"outputs": [{"name": "system", "shape": [1]}]}, "outputs must be of factors"),
        ({"outputs": [{"name": "factors", "shape": [0]}]}, "must have factors and rates"),
        ({"state": []}, "state must be parts"),
        ({"state": [{"name": "g", "size": -1}]}, "size must be 1 or more"),
        ({"state": "g"}, "Expected `array`"),
        ({"lanes": "2"}, "Expected `int`"),
        ({"surprise": 1}, "unknown field `surprise`"),
        ({"config": {"manifest_sha256": "0" * 64}}, "needs one manifest_sha256, found 2"),
    ],
)
def test_a_true_manifest_of_nonsense_is_refused(folder, changes, complaint):
    reseal(folder, **changes)
    assert complaint in refusal(folder)


def test_a_bad_shape_of_a_good_output_is_refused(folder):
    outputs = json.loads((folder / "manifest.json").read_text())["outputs"]
    reseal(folder, outputs=[outputs[0] | {"shape": [0]}, *outputs[1:]])
    assert "output factors: shape must be sizes" in refusal(folder)
    reseal(folder, outputs=[outputs[0] | {"labels": ["one"]}, *outputs[1:]])
    assert "output factors: 1 labels for shape [5]" in refusal(folder)


def without(name):
    return {k: v for k, v in golden_arrays().items() if k != name}


def zip_of(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


HUGE = (
    b"\x93NUMPY\x01\x00\x56\x00"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000, 3), }".ljust(85)
    + b"\n"
)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cannot be read as arrays"),
        (b"not a zip", "cannot be read as arrays"),
        (npz(**without("z")), "needs x, observed, u, factors"),
        (npz(**golden_arrays(), extra=np.zeros(3)), "needs x, observed, u, factors"),
        (npz(**without("x"), x=np.zeros((S, C), np.float32)), "for more than the anchor's bins"),
        (npz(**without("x"), x=np.float32(5)), "for more than the anchor's bins"),
        (npz(**without("z"), z=np.zeros((T - S, 3), np.float32)), "z must be finite float32 (16, 2), found float32"),
        (npz(**without("z"), z=np.zeros((T - S, 2))), "found float64 (16, 2)"),
        (npz(**without("z"), z=np.full((T - S, 2), np.nan, np.float32)), "z must be finite"),
        (npz(**without("z"), z=np.array([print], dtype=object)), "allow_pickle=False"),
        (zip_of("x.npy", HUGE), "cannot be read as arrays"),
        (zip_of("x", b"raw"), "needs x, observed"),
    ],
    ids=range(12),
)
def test_a_golden_run_that_is_not_what_the_manifest_says_is_refused(folder, content, complaint):
    (folder / "golden.npz").write_bytes(content)
    reseal(folder)
    assert complaint in refusal(folder)


def test_a_golden_run_that_unpacks_without_end_is_refused(folder, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_FILE", 1 << 16)
    (folder / "golden.npz").write_bytes(npz(x=np.zeros((1 << 16, 3), np.float32)))
    reseal(folder)
    assert "unpacks to" in refusal(folder)


@settings(deadline=None)
@given(data=st.data())
def test_a_golden_run_damaged_by_its_author_is_read_or_refused(sealed, data):
    content = bytearray(CONTENT["golden.npz"])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    loaded = load(sealed)
    damaged = bundle.Bundle(loaded.path, loaded.manifest, {**loaded.files, "golden.npz": bytes(content)})
    message = ""
    try:
        damaged.golden()
    except BundleError as error:
        message = str(error)
    assert len(message.splitlines()) <= 1


def test_nothing_is_left_when_the_disk_is_full(tmp_path, monkeypatch):
    real, done = os.fsync, []

    def full(descriptor):
        done.append(descriptor)
        if len(done) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="tiny: cannot be written: No space left on device"):
        write(tmp_path / "tiny", MANIFEST, CONTENT)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_content_is_wrong(tmp_path):
    with pytest.raises(BundleError, match=r"/tiny/golden.npz: cannot be read") as caught:
        write(tmp_path / "tiny", MANIFEST, CONTENT | {"golden.npz": b""})
    assert "/.tiny." not in str(caught.value)
    with pytest.raises(BundleError, match=r"a bundle has the files anchor.onnx"):
        write(tmp_path / "tiny", MANIFEST, {"step.onnx": b""})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_leaves_the_old_one(folder, tmp_path, monkeypatch):
    before = load(folder).hash
    path = type(tmp_path)
    real = path.rename

    def rename(self, target):
        if self.name.startswith(".tiny") and self.suffix != ".old":
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(path, "rename", rename)
    with pytest.raises(BundleError, match="Input/output error"):
        write(folder, MANIFEST, CONTENT | {"step.onnx": b"new"}, overwrite=True)
    assert load(folder).hash == before
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]


def test_only_bundles_are_replaced_and_only_when_asked(folder, tmp_path):
    with pytest.raises(BundleError, match="exists already"):
        write(folder, MANIFEST, CONTENT)
    write(folder, MANIFEST, CONTENT | {"step.onnx": b"new"}, overwrite=True)
    assert load(folder).files["step.onnx"] == b"new"
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").touch()
    with pytest.raises(BundleError, match="is not a bundle, so it is not replaced"):
        write(thesis, MANIFEST, CONTENT, overwrite=True)
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(BundleError, match="is not a bundle, so it is not replaced"):
        write(tmp_path / "link", MANIFEST, CONTENT, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "thesis", "tiny"]


def test_parents_are_made_and_links_to_a_bundle_are_loaded(tmp_path):
    write(tmp_path / "a" / "b", MANIFEST, CONTENT)
    (tmp_path / "current").symlink_to(tmp_path / "a" / "b")
    assert load(str(tmp_path / "current")).files == CONTENT


def test_an_impossible_place_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be written: Not a directory"):
        write(tmp_path / "file" / "tiny", MANIFEST, CONTENT)
