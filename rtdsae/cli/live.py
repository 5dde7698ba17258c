"""The verbs that deal with live streams: serve, listen, simulate, replay."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from tyro.conf import Positional

from rtdsae import shipped
from rtdsae.bins import Kind
from rtdsae.cli.arguments import unset
from rtdsae.cli.lsl import load_lsl
from rtdsae.defaults import ENDPOINT
from rtdsae.errors import ConfigError
from rtdsae.serve.settings import Anchoring, WakeMode

if TYPE_CHECKING:
    from rtdsae.recordings import Recording
    from rtdsae.wire import Latents

__all__ = ["Listen", "Replay", "Serve", "Simulate"]


class Serve(msgspec.Struct, frozen=True, kw_only=True):
    """Decode an LSL stream with a bundle, and publish each bin's latents over ZeroMQ."""

    bundle: Annotated[Positional[Path | None], unset("[BUNDLE]")] = None
    """Folder of the bundle, or the name of a shipped one; without it, those are listed."""
    config: Annotated[Path | None, unset("YAML")] = None
    """More settings, and these: see configs/daemon.yaml."""
    set: Annotated[list[str], unset("KEY=VALUE")] = msgspec.field(default_factory=list)
    """One of those, like timeout_s=30 or model.forecast_bins=5."""
    session: Annotated[str | None, unset("NAME")] = None
    """Which session's neurons, where the bundle has several."""
    stream: Annotated[str | None, unset("QUERY", "type=Spikes")] = None
    """source_id=... or name=... or XPath."""
    input: Annotated[Kind | None, unset("KIND", "by its rate")] = None
    """counts, samples or events."""
    pub: Annotated[str | None, unset("ENDPOINT", ENDPOINT)] = None
    """Where to publish."""
    control: Annotated[str | None, unset("ENDPOINT")] = None
    """Where to take requests, like tcp://127.0.0.1:5557."""
    keys: Annotated[Path | None, unset("FOLDER")] = None
    """CURVE keys that `rtdsae keys` made: only known clients."""
    publish: Annotated[str | None, unset("A,B", "factors,z,behaviour")] = None
    """Arrays: also f, rates, counts, forecast."""
    anchor: Annotated[Anchoring | None, unset("HOW", "as the bundle was made")] = None
    """once, every (R bins) or lanes (blended)."""
    lsl_out: Annotated[str | None, unset("NAME")] = None
    """Publish as an LSL stream of this name too."""
    timeout: Annotated[float | None, unset("SECONDS", "10")] = None
    """To wait for the stream."""
    provider: Annotated[str | None, unset("NAME", "cpu")] = None
    """Of ONNX Runtime: cpu, cuda, ...; auto: the quickest."""
    wake: Annotated[WakeMode | None, unset("HOW", "warm")] = None
    """Before each bin: warm, poll or off."""
    metrics: Annotated[str | None, unset("HOST:PORT")] = None
    """Serve Prometheus metrics there, like 127.0.0.1:9464."""
    priority: Annotated[int | None, unset("N")] = None
    """Real-time priority of the decoding, 1 to 99."""
    cpu: Annotated[str | None, unset("LIST")] = None
    """Cores to run on, like 2,3."""

    def run(self) -> None:
        """Serves until SIGTERM or Ctrl-C.

        Raises:
            ConfigError: no bundle is named, neither here nor in the settings.
        """
        if self.bundle is None and self.config is None and not any(one.startswith("bundle=") for one in self.set):
            print(_shipped_models())
            raise ConfigError("which bundle? Name a folder, or one of these, as in: rtdsae serve lfads_lorenz")
        load_lsl()
        from rtdsae.serve.console import set_up
        from rtdsae.serve.daemon import Daemon
        from rtdsae.serve.settings import load_settings

        flags = msgspec.structs.asdict(self)
        config, overrides, timeout, cpu = (flags.pop(name) for name in ("config", "set", "timeout", "cpu"))
        flags["bundle"] = self.bundle and str(self.bundle)
        flags["keys"] = self.keys and str(self.keys)
        flags["publish"] = None if self.publish is None else _listed(self.publish)
        flags["cpus"] = None if cpu is None else _listed(cpu)
        settings = load_settings(config, overrides, {**flags, "timeout_s": timeout})
        settings = msgspec.structs.replace(settings, bundle=shipped.model(settings.bundle))
        with set_up(json=settings.log_json, tty=sys.stdout.isatty()) as console:
            daemon = Daemon(settings)
            console.show(daemon.status)
            daemon.run()


def _shipped_models() -> str:
    """A line for each bundle that comes with the package."""
    from rtdsae import bundle as bundles

    lines = [f"bundles that come with rtdsae, each with a MODEL_CARD.md, in {shipped.folder('models')}:"]
    for name, path in shipped.models().items():
        manifest = bundles.load(path).manifest
        bins = f"{len(manifest.channels)} channels, bins of {1e3 * manifest.bin_width_s:g} ms"
        score = f"bps {manifest.scores['bps']:.3f}" if "bps" in manifest.scores else ""
        lines.append(f"  {name:25} {bins:31} {score}  {', '.join(manifest.behaviour_labels)}".rstrip())
    return "\n".join(lines)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """Print what a daemon publishes, a line a bin."""

    endpoint: Positional[str] = ENDPOINT
    """Where it publishes."""
    count: Annotated[int | None, unset("N", "never")] = None
    """Stop after so many bins."""
    arrays: Annotated[str, unset("A,B", "all that are published")] = ""
    """Which arrays to print, with commas."""
    json: bool = False
    """One JSON object a line, with every value."""
    timeout: float = 10.0
    """Seconds without a bin after which to give up."""
    keys: Annotated[Path | None, unset("FOLDER")] = None
    """This client's keys: FOLDER/carry/NAME of rtdsae keys."""

    def run(self) -> None:
        """Prints until the count is reached or Ctrl-C.

        Raises:
            EndpointError: nothing was published for `timeout` seconds.
        """
        from rtdsae.client import Subscriber

        if self.timeout <= 0 or (self.count is not None and self.count < 1):
            raise ConfigError(f"--timeout {self.timeout:g} and --count {self.count}: both must be above 0")
        with Subscriber(self.endpoint, timeout_s=self.timeout, keys=self.keys) as subscriber:
            for i, message in enumerate(subscriber, 1):
                print(_as_json(message, self.arrays) if self.json else _as_text(message, self.arrays), flush=True)
                if i == self.count:
                    return


class Simulate(msgspec.Struct, frozen=True, kw_only=True):
    """Synthetic neurons as a live LSL stream, with the rates they were drawn from as a second one."""

    system: Literal["lorenz", "rnn", "reach"] = "lorenz"
    """What drives the neurons."""
    seconds: float = 60.0
    """How much to simulate; then the stream ends, unless --loop."""
    seed: Annotated[int | None, unset("N", "5 for rnn, else 0")] = None
    """Another seed, other neurons."""
    take: int = 1
    """Another take, other activity of the same neurons; the recordings to train on are take 0."""
    neurons: Annotated[int | None, unset("N", "lorenz 30, rnn 50, reach 40")] = None
    """How many neurons."""
    source_id: str = "rtdsae-simulate"
    """By which a decoder finds the stream; the true rates have the same with -truth."""
    no_truth: bool = False
    """Leave out the second stream."""
    speed: float = 1.0
    """Bins a second, relative to real time."""
    loop: bool = False
    """Begin again at the end, for ever."""
    wait: float = 0.0
    """Seconds to wait for a decoder before the first bin; 0 begins at once."""

    def run(self) -> None:
        """Streams to the end."""
        load_lsl()
        from rtdsae.recordings import reaching, synthetic

        chosen = {"seed": self.seed, "n_neurons": self.neurons}
        options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
        makers: dict[str, Any] = {"lorenz": synthetic.lorenz, "rnn": synthetic.chaotic_rnn, "reach": reaching.reaching}
        recording = makers[self.system](seconds=self.seconds, take=self.take, **options)
        _play(recording, self, name=f"rtdsae-{self.system}", truth=not self.no_truth)


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A recording as a live LSL stream, in real time or faster: whatever rtdsae convert reads."""

    file: Positional[Path]
    """The recording."""
    original: bool = False
    """As it was sent: an XDF stream's samples, or spikes, with jitter and gaps."""
    bin_width: Annotated[float | None, unset("SECONDS", "the file's")] = None
    """Of a bin: spikes are binned so, finer bins are added up."""
    stream: Annotated[str | None, unset("QUERY", "the one of type Spikes")] = None
    """XDF's neural stream: name=..., type=..., source_id=..."""
    split: Literal["train", "valid", "test", "all"] = "all"
    """Play only this part; a file that names no splits is split as training does by default."""
    channels: Literal["heldin", "all"] = "heldin"
    """Where the recording holds neurons out, play only the others, or all."""
    source_id: str = "rtdsae-replay"
    """By which a decoder finds the stream."""
    truth: bool = False
    """Stream the true rates too, where the recording has them."""
    speed: float = 1.0
    """Relative to real time."""
    loop: bool = False
    """Begin again at the end, for ever."""
    wait: float = 0.0
    """Seconds to wait for a decoder before the first bin; 0 begins at once."""

    def run(self) -> None:
        """Streams to the end."""
        load_lsl()
        from rtdsae import recordings

        if self.original:
            self._run_original()
            return
        recording = recordings.load(self.file, self.bin_width, stream=self.stream)
        if self.split != "all":
            recording = _part(recording, self.split, self.file)
        if self.channels == "heldin" and recording.heldout is not None:
            recording = _heldin(recording)
        _play(recording, self, name=self.file.stem, truth=self.truth)

    def _run_original(self) -> None:
        from rtdsae import recordings
        from rtdsae.play import Player

        if self.bin_width or self.truth or self.split != "all":
            raise ConfigError("--original plays what came before any bin: leave --bin-width, --split and --truth out")
        original = recordings.load_original(self.file, stream=self.stream)
        if self.channels == "heldin" and original.heldout is not None:
            original = original.select(~original.heldout)
        player = Player(original, source_id=self.source_id, name=self.file.stem, speed=self.speed, loop=self.loop)
        kind = f"samples at {original.nominal_rate_hz:g} Hz" if original.nominal_rate_hz else "spikes"
        print(f"streaming {kind} of {len(original.channels)} channels as source_id={self.source_id}", flush=True)
        print(f"pushed {player.run(wait_s=self.wait)} {kind.split()[0]}")


def _play(recording: "Recording", verb: Simulate | Replay, *, name: str, truth: bool) -> None:
    from rtdsae.play import Player

    player = Player(recording, source_id=verb.source_id, name=name, speed=verb.speed, loop=verb.loop, truth=truth)
    width_ms = 1e3 * recording.bin_width_s
    print(
        f"streaming {recording.n_channels} channels in bins of {width_ms:g} ms as source_id={verb.source_id}",
        flush=True,
    )
    pushed = player.run(wait_s=verb.wait)
    print(f"pushed {pushed} bins")


def _part(recording: "Recording", split: str, file: Path) -> "Recording":
    recording = recording.split()
    chosen = recording.in_split(split)
    if not chosen.any():
        raise ConfigError(f"{file} has no {split} part: leave --split out")
    return recording.select(chosen)


def _heldin(recording: "Recording") -> "Recording":
    """The recording of the neurons that a model sees."""
    seen = recording.heldin
    rates = None if recording.true_rates is None else recording.true_rates[:, seen]
    labels = tuple(label for label, kept in zip(recording.channels, seen, strict=True) if kept)
    return replace(recording, counts=recording.counts[:, seen], channels=labels, true_rates=rates, heldout=None)


def _as_text(message: "Latents", arrays: str) -> str:
    values = " ".join(f"{name}={_short(message, name)}" for name in _names(message, arrays))
    delay_us = 1e6 * (message.t_out - message.t_in)
    marks = "".join(f" {flag.name.lower()}" for flag in message.flags if flag.name)
    return f"{message.seq} bin {message.bin} t {message.t_bin:.3f} {delay_us:.0f} us{marks} {values}"


def _short(message: "Latents", name: str) -> str:
    values = message[name].ravel()
    return "[" + " ".join(f"{v:.3g}" for v in values[:4]) + (" ...]" if values.size > 4 else "]")


def _as_json(message: "Latents", arrays: str) -> str:
    head = {name: getattr(message, name) for name in ("seq", "bin", "t_bin", "t_in", "t_out", "run")}
    said = {**head, "flags": [flag.name.lower() for flag in message.flags if flag.name]}
    return json.dumps(_finite({**said, **{name: message[name].tolist() for name in _names(message, arrays)}}))


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _names(message: "Latents", arrays: str) -> list[str]:
    wanted = [name.strip() for name in arrays.split(",") if name.strip()]
    return wanted or [array.name for array in message.schema.arrays] if message.schema else wanted
