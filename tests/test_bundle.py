"""A bundle is what was written or a BundleError: nothing between."""

import hashlib
import io
import json
import os
import shutil
import zipfile

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtdsae import bundle
from rtdsae.bundle import SESSION_FILES, Manifest, Output, Session, StatePart, load, session_path, write
from rtdsae.bundle import folder as folders
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


def golden_arrays(channels=C, neurons=C, seed=0):
    rng = np.random.default_rng(seed)
    sizes = SHAPES | {"rates": (neurons,)}
    shapes = {"x": (T, channels), "observed": (T,), "u": (T, U)} | {k: (T - S, *shape) for k, shape in sizes.items()}
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

# The same model with a second session: 2 channels, and a third neuron that was held out.
DAY_2 = Session(
    name="day2",
    channels=["p", "q"],
    outputs=[Output(name=name, shape=list(shape)) for name, shape in (SHAPES | {"rates": (3,)}).items()],
    normalisation={"mean": [0.5, 1.0]},
)
DAY_2_CONTENT = {
    "anchor.onnx": b"anchor of day 2",
    "step.onnx": b"step of day 2",
    "golden.npz": npz(**golden_arrays(2, 3, seed=1)),
}
WEIGHTS = {"model.kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "alignment": np.ones((2, 4, 3), np.float32)}
TWO = msgspec.structs.replace(MANIFEST, sessions=["day 1", "day2"], further=[DAY_2])
TWO_CONTENT = (
    CONTENT
    | {session_path("day2", name): content for name, content in DAY_2_CONTENT.items()}
    | {"weights.npz": npz(**WEIGHTS)}
)
TWO_FILES = ["manifest.json", *TWO_CONTENT]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "tiny", MANIFEST, CONTENT)
    return tmp_path / "tiny"


@pytest.fixture
def two(tmp_path):
    write(tmp_path / "two", TWO, TWO_CONTENT)
    return tmp_path / "two"


def reseal(folder, **changes):
    """What a hostile author would do: a manifest of their own, with hashes that are right."""
    manifest = json.loads((folder / "manifest.json").read_text())
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    manifest |= {"files": hashes, **changes, "manifest_sha256": "0" * 64}
    text = json.dumps(manifest)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.json").write_text(text.replace("0" * 64, digest))


def refusal(folder, session=None):
    with pytest.raises(BundleError) as caught:
        load(folder).session(session).golden()
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
    write(folder, TWO, TWO_CONTENT)
    return folder


@pytest.mark.parametrize("name", TWO_FILES)
@given(data=st.data())
def test_any_one_byte_changed_is_refused(sealed, name, data):
    original = (sealed / name).read_bytes()
    at = data.draw(st.integers(0, len(original) - 1))
    change = data.draw(st.integers(1, 255))
    altered = bytearray(original)
    altered[at] ^= change
    try:
        (sealed / name).write_bytes(altered)
        with pytest.raises(BundleError) as caught:
            load(sealed)
        assert len(str(caught.value).splitlines()) == 1
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


@pytest.mark.parametrize("name", TWO_FILES)
@pytest.mark.parametrize("keep", [0, 1, -1])
def test_truncated_files_are_refused(two, name, keep):
    content = (two / name).read_bytes()
    (two / name).write_bytes(content[:keep])
    refusal(two, "day2")


@pytest.mark.parametrize("name", TWO_FILES)
def test_a_missing_file_is_named(two, name):
    (two / name).unlink()
    assert f"{name}: is missing" in refusal(two, "day2")


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
    assert "is a file: a bundle is a folder" in refusal(folder / "manifest.json")
    assert "manifest.json: is missing" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["../step.onnx", "/etc/passwd", "a/b.onnx", "step.onnx\0", ""])
def test_a_manifest_that_names_other_files_is_refused(folder, name):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    reseal(folder, files=files | {name: "1" * 64})
    assert "files must be anchor.onnx" in refusal(folder)


@pytest.mark.parametrize("name", ["manifest.json", "step.onnx", "weights.npz", "sessions/day2/golden.npz"])
def test_links_and_pipes_are_not_followed(two, tmp_path, name):
    (two / name).rename(tmp_path / "moved")
    (two / name).symlink_to(tmp_path / "moved")
    assert f"{name}: is not a regular file" in refusal(two, "day2")
    (two / name).unlink()
    os.mkfifo(two / name)
    assert f"{name}: is not a regular file" in refusal(two, "day2")
    (two / name).unlink()
    (two / name).mkdir()
    assert f"{name}: is not a regular file" in refusal(two, "day2")


@pytest.mark.parametrize("name", ["sessions", "sessions/day2"])
def test_a_folder_of_sessions_is_a_folder_and_no_link_to_one(two, tmp_path, name):
    (two / name).rename(tmp_path / "moved")
    assert f"{name}: is missing or no folder: this is not a whole bundle" in refusal(two, "day2")
    (two / name).symlink_to(tmp_path / "moved", target_is_directory=True)
    assert f"{name}: is missing or no folder" in refusal(two, "day2")
    (two / name).unlink()
    (two / name).touch()
    assert f"{name}: is missing or no folder" in refusal(two, "day2")


def test_a_file_that_is_no_part_of_it_is_refused(folder):
    (folder / ".DS_Store").touch()
    load(folder)
    (folder / "weights\n.bin").touch()
    assert r"'weights\n.bin' is no part of a bundle" in refusal(folder)


@pytest.mark.parametrize("where", ["sessions", "sessions/day2"])
@pytest.mark.parametrize("name", ["step.onnx.bak", "day3"])
def test_what_is_no_part_of_a_session_is_refused(two, where, name):
    (two / where / ".DS_Store").touch()
    load(two)
    (two / where / name).touch()
    assert f"'{where}/{name}' is no part of a bundle" in refusal(two, "day2")
    (two / where / name).unlink()
    shutil.copytree(two / "sessions" / "day2", two / where / name)  # a whole session that the manifest does not know
    assert f"'{where}/{name}' is no part of a bundle" in refusal(two, "day2")


def test_sessions_beside_a_bundle_of_one_are_no_part_of_it(folder):
    (folder / "sessions").mkdir()
    assert "'sessions' is no part of a bundle" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("manifest.json", folders.MAX_MANIFEST),
        ("step.onnx", folders.MAX_FILE),
        ("weights.npz", folders.MAX_FILE),
        ("sessions/day2/step.onnx", folders.MAX_FILE),
    ],
)
def test_oversized_files_are_refused_unread(two, name, limit):
    os.truncate(two / name, limit + 1)  # sparse: takes no disk
    assert f"has {limit + 1} bytes" in refusal(two, "day2")


# sessions -------------------------------------------------------------------------------------------------------------


def test_each_session_has_its_own_neurons_and_files_and_the_one_model(two):
    loaded = load(two)
    assert loaded.files == TWO_CONTENT
    assert loaded.manifest.sessions == ["day 1", "day2"]
    first, second = loaded.session("day 1"), loaded.session("day2")
    assert first.manifest.channels == loaded.manifest.channels
    assert {name: first.files[name] for name in SESSION_FILES} == {name: CONTENT[name] for name in SESSION_FILES}
    assert {name: second.files[name] for name in SESSION_FILES} == DAY_2_CONTENT
    assert second.manifest.channels == ["p", "q"]
    assert second.manifest.output("rates").shape == [3]
    assert second.manifest.normalisation == {"mean": [0.5, 1.0]}
    assert (first.manifest.sessions, second.manifest.sessions) == (["day 1"], ["day2"])
    for view, other in ((first, "day2"), (second, "day 1")):
        with pytest.raises(BundleError, match=f"has no session '{other}'"):
            view.session(other)
    own = ("channels", "outputs", "normalisation", "sessions", "further")
    shared = [field for field in Manifest.__struct_fields__ if field not in own]
    assert [getattr(second.manifest, f) for f in shared] == [getattr(loaded.manifest, f) for f in shared]
    for session, arrays in ((first, golden_arrays()), (second, golden_arrays(2, 3, seed=1))):
        found = session.golden()
        assert found.keys() == arrays.keys()
        for name, array in found.items():
            np.testing.assert_array_equal(array, arrays[name])
        assert session.hash == loaded.hash
        assert session.weights().keys() == WEIGHTS.keys()


def test_a_session_has_to_be_named_only_where_there_are_several(folder, two):
    assert load(folder).session().files == load(folder).session("day 1").files == CONTENT
    with pytest.raises(BundleError, match=r"two: has the sessions day 1, day2: say which one with --session$"):
        load(two).session()
    for name in ("day3", "", "..", "Day2"):
        with pytest.raises(BundleError, match=rf"two: has no session '{name}': it has day 1, day2$"):
            load(two).session(name)
    with pytest.raises(BundleError, match=r"tiny: has no session 'day2': it has day 1$"):
        load(folder).session("day2")


def day_2(**changes):
    return [json.loads(msgspec.json.encode(DAY_2)) | changes]


def outputs(**shapes):
    return [{"name": name, "shape": list(shape)} for name, shape in (SHAPES | {"rates": (3,)} | shapes).items()]


def renamed(name):
    """A second session of this name, in the manifest's two places."""
    return {"sessions": ["day 1", name], "further": day_2(name=name)}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sessions": ["day2", "day2"]}, "sessions must be names, each another one"),
        ({"sessions": ["day 1", "day2", "day2"], "further": day_2() * 2}, "sessions must be names, each another one"),
        ({"sessions": ["day 1"]}, "further must be the sessions after the first"),
        ({"sessions": []}, "further must be the sessions after the first"),
        ({"sessions": ["day 1", "day3"]}, "further must be the sessions after the first"),
        ({"sessions": ["day2", "day 1"]}, "further must be the sessions after the first"),
        ({"further": []}, "further must be the sessions after the first"),
        (renamed(".."), "a session's name must be letters"),
        (renamed("."), "a session's name must be letters"),
        (renamed(""), "a session's name must be letters"),
        (renamed("a/b"), "a session's name must be letters"),
        (renamed("../day2"), "a session's name must be letters"),
        (renamed("/day2"), "a session's name must be letters"),
        (renamed("day 2"), "a session's name must be letters"),
        (renamed("d" * 101), "a session's name must be letters"),
        (renamed("day2\n"), "must be printable, on one line"),
        (renamed("day3"), "files must be anchor.onnx"),
        ({"further": day_2(channels=[])}, "session day2: channels must be labels"),
        ({"further": day_2(channels=["p", "p"])}, "session day2: channels must be labels"),
        ({"further": day_2(channels=["p", "q\x1b[2J"])}, "session day2: labels, units and names must be printable"),
        ({"further": day_2(channels=list("pqrs"))}, "session day2: output rates must have a value for each channel"),
        ({"further": day_2(outputs=outputs(z=(3,)))}, "session day2: its outputs but for rates must be the first"),
        ({"further": day_2(outputs=outputs(factors=(5, 1)))}, "session day2: its outputs but for rates must be"),
        ({"further": day_2(outputs=outputs()[:-1])}, "session day2: its outputs but for rates must be the first"),
        ({"further": day_2(outputs=outputs()[::-1])}, "session day2: outputs must be of factors"),
        ({"further": day_2(outputs=outputs(rates=(0,)))}, "session day2: output rates: shape must be sizes"),
        ({"further": day_2(outputs=outputs(rates=(1 << 26,)))}, "its sizes come to more than"),
        ({"further": day_2(surprise=1)}, "unknown field `surprise`"),
        ({"further": [{"name": "day2"}]}, "missing required field"),
    ],
)
def test_sessions_that_are_not_of_one_model_are_refused(two, changes, complaint):
    reseal(two, **changes)
    assert complaint in refusal(two, "day2")


def test_a_golden_run_of_another_session_is_refused_by_its_path(two):
    (two / "sessions" / "day2" / "golden.npz").write_bytes(CONTENT["golden.npz"])
    reseal(two)
    load(two).session("day 1").golden()
    assert "two/sessions/day2/golden.npz: x must be finite float32 (20, 2)" in refusal(two, "day2")


def test_the_weights_are_what_was_written_or_are_told_to_be_absent(folder, two):
    found = load(two).weights()
    assert found.keys() == WEIGHTS.keys()
    for name, values in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype
    with pytest.raises(BundleError, match=r"tiny: was written without its weights: calibrate from the run instead$"):
        load(folder).weights()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "weights.npz: cannot be read as arrays"),
        (TWO_CONTENT["weights.npz"][:-30], "weights.npz: cannot be read as arrays"),
        (npz(kernel=np.array([print], dtype=object)), "allow_pickle=False"),
        (npz(kernel=np.array([1, np.nan], np.float32)), "weights.npz: 'kernel' is not finite numbers"),
        (npz(kernel=np.array([1, -np.inf])), "weights.npz: 'kernel' is not finite numbers"),
        (npz(kernel=np.array(["1"])), "weights.npz: 'kernel' is not finite numbers"),
        (npz(kernel=np.array([1j])), "weights.npz: 'kernel' is not finite numbers"),
        (npz(**{"a\nb": np.array(np.nan)}), r"weights.npz: 'a\nb' is not finite numbers"),
    ],
    ids=range(8),
)
def test_weights_that_are_not_finite_numbers_are_refused_where_they_are_asked_for(tmp_path, content, complaint):
    write(tmp_path / "two", TWO, TWO_CONTENT | {"weights.npz": content})
    loaded = load(tmp_path / "two")
    loaded.session("day2").golden()  # what serves does not need them
    with pytest.raises(BundleError) as caught:
        loaded.weights()
    assert complaint in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_unpack_without_end_are_refused(tmp_path, monkeypatch):
    halves = {name: np.zeros(1 << 14, np.float32) for name in ("kernel", "bias")}
    write(tmp_path / "two", TWO, TWO_CONTENT | {"weights.npz": npz(**halves)})
    monkeypatch.setattr(folders, "MAX_FILE", 100_000)  # each is below it
    with pytest.raises(BundleError, match=r"weights.npz: unpacks to"):
        load(tmp_path / "two").weights()


@pytest.mark.parametrize("name", ["..", "../../outside", "a/b", "", "day 2"])
def test_a_name_that_is_a_path_writes_nothing_anywhere(tmp_path, name):
    manifest = msgspec.structs.replace(
        TWO, sessions=["day 1", name], further=[msgspec.structs.replace(DAY_2, name=name)]
    )
    content = CONTENT | {session_path(name, file): content for file, content in DAY_2_CONTENT.items()}
    with pytest.raises(BundleError, match=r"two: a session's name must be letters"):
        write(tmp_path / "in" / "two", manifest, content)
    assert list(tmp_path.rglob("*")) == []


def test_a_session_is_written_with_its_three_files_and_a_golden_run_of_its_own(tmp_path):
    for file in SESSION_FILES:
        partial = {name: c for name, c in TWO_CONTENT.items() if name != session_path("day2", file)}
        with pytest.raises(BundleError, match=rf"a bundle has the files .*sessions/day2/{file}"):
            write(tmp_path / "two", TWO, partial)
    with pytest.raises(BundleError, match=r"a bundle has the files .*, found .*sessions/day2/step.onnx"):
        write(tmp_path / "two", MANIFEST, TWO_CONTENT)
    wrong = TWO_CONTENT | {session_path("day2", "golden.npz"): CONTENT["golden.npz"]}
    with pytest.raises(BundleError, match=rf"^{tmp_path}/two/sessions/day2/golden.npz: x must be finite float32"):
        write(tmp_path / "two", TWO, wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_may_be_written_without_its_weights(tmp_path):
    write(tmp_path / "two", TWO, {name: content for name, content in TWO_CONTENT.items() if name != "weights.npz"})
    assert load(tmp_path / "two").session("day2").golden().keys() == golden_arrays().keys()


# manifests ------------------------------------------------------------------------------------------------------------


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
        ({"external": ["cue", "cue"]}, "external must be labels, each another one"),
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


def test_a_second_seal_that_is_spelled_otherwise_is_refused(folder):
    text = (folder / "manifest.json").read_text().rstrip()[:-1] + ', "manifest\\u005fsha256": "' + "f" * 64 + '"}'
    blank = text.replace(load(folder).hash, "0" * 64)
    (folder / "manifest.json").write_text(blank.replace("0" * 64, hashlib.sha256(blank.encode()).hexdigest()))
    assert "has been altered" in refusal(folder)


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
    monkeypatch.setattr(folders, "MAX_FILE", 1 << 16)
    (folder / "golden.npz").write_bytes(npz(x=np.zeros((1 << 16, 3), np.float32)))
    reseal(folder)
    assert "unpacks to" in refusal(folder)


@given(data=st.data())
@pytest.mark.parametrize("name", ["golden.npz", "weights.npz"])
def test_arrays_damaged_by_their_author_are_read_or_refused(sealed, name, data):
    content = bytearray(TWO_CONTENT[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    loaded = load(sealed)
    damaged = bundle.Bundle(loaded.path, loaded.manifest, {**loaded.files, name: bytes(content)})
    message = ""
    try:
        (damaged.golden if name == "golden.npz" else damaged.weights)()
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
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(BundleError, match="exists already"):
        write(tmp_path / "nowhere", MANIFEST, CONTENT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "nowhere", "thesis", "tiny"]


def test_what_an_interrupted_replacement_left_stands_in_nobodys_way(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # ended before the old one was gone
        write(folder, MANIFEST, CONTENT | {"step.onnx": b"new"}, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 2
    for content in (b"newer", b"newest"):
        write(folder, MANIFEST, CONTENT | {"step.onnx": content}, overwrite=True)
    assert load(folder).files["step.onnx"] == b"newest"
    assert len(list(tmp_path.iterdir())) == 2


def test_parents_are_made_and_links_to_a_bundle_are_loaded(tmp_path):
    write(tmp_path / "a" / "b", MANIFEST, CONTENT)
    (tmp_path / "current").symlink_to(tmp_path / "a" / "b")
    assert load(str(tmp_path / "current")).files == CONTENT


def test_an_impossible_place_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match="cannot be written: Not a directory"):
        write(tmp_path / "file" / "tiny", MANIFEST, CONTENT)
