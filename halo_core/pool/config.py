"""What the user says about the pool: which models, on which engines, under which names."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from halo_core.errors import ConfigError


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VLLMSpec(_Spec):
    """vLLM engines that Halo starts itself: one program per GPU, or per group of CPU cores."""

    kind: Literal["vllm"] = "vllm"
    model: str
    """Name under which the pool serves it."""
    path: str = ""
    """Folder or hub name of the weights; `model` when empty."""
    layout: str = "auto"
    """`auto` (calibrated once, cached), or `ENGINESxCORES` such as `2x1`."""
    dtype: str = "auto"
    max_num_seqs: int = Field(default=32, gt=0)
    max_num_batched_tokens: int | None = Field(default=None, gt=0)
    """Tokens of one engine step (vLLM's own choice when empty): fewer, and decoding calls wait less for prefills."""
    max_model_len: int | None = None
    kv_cache_gib: float | None = None
    kv_sharing: Literal["auto", "on", "off"] = "auto"
    """Whether the engines of this host share KV through a block store in its shared memory: prefixes are computed once
    per host, conversations move freely, and what an engine had to evict comes back. `auto`: where the engines can;
    `on`: they do not start where they cannot. HALO_KV_SHARING overrides it."""
    kv_store_gib: float | None = Field(default=None, gt=0)
    """Room for shared KV; when empty an eighth of the memory, and at most half of what /dev/shm has free."""
    extra_args: tuple[str, ...] = ()


class EndpointSpec(_Spec):
    """A server that speaks the OpenAI chat-completions protocol and is run by somebody else."""

    kind: Literal["endpoint"] = "endpoint"
    model: str
    url: str
    served_as: str = ""
    """The name that the server knows the model by; `model` when empty."""
    api_key_env: str = ""
    """Environment variable that holds the key; keys are never written into files."""
    slots: int = Field(default=64, gt=0)
    headers: dict[str, str] = Field(default_factory=dict)


class SimulatedSpec(_Spec):
    """An engine that answers with a hash of the prompt: tests, dry runs, and measuring Halo's own overhead."""

    kind: Literal["simulated"] = "simulated"
    model: str
    count: int = Field(default=1, gt=0)
    slots: int = Field(default=64, gt=0)
    zero_latency: bool = True
    max_model_len: int | None = None


EngineSpec = Annotated[VLLMSpec | EndpointSpec | SimulatedSpec, Field(discriminator="kind")]


class PoolConfig(_Spec):
    """The whole pool."""

    models: dict[str, str] = Field(default_factory=dict)
    """Name that the app uses -> model that the pool serves; `*` stands for every other name."""
    engines: tuple[EngineSpec, ...] = ()
    adopt: bool = True
    """Whether a server that the app itself names (`base_url=`) becomes an engine of the pool."""
    restarts: int = Field(default=3, ge=0)
    """How often a dead engine is started again before its calls fail."""
    calibrate: bool = True
    """Whether vLLM engines are measured when they come up as nobody has measured them before: about a minute, once per
    model, layout and machine. HALO_CALIBRATE=0 switches it off as well. What is remembered is used in any case; servers
    that others run are only measured by `halo calibrate`."""
    kv_moves: Literal["auto", "always", "never"] = "auto"
    """Whether calls go to engines that have to take their prefix from the block store. `always` and `never` are for
    comparing: the answers are the same."""
    places: int | None = Field(default=None, gt=0)
    """At most so many engines are loaded at once, each on an equal share of the machine; the models take turns.

    None: every model has engines of its own, as its `layout` says.
    """

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        if self.places is None:
            return self
        loadable = [spec for spec in self.engines if not isinstance(spec, EndpointSpec)]
        if not loadable:
            raise ValueError("places needs models that Halo loads itself (kind = 'vllm'): servers are not loaded")
        for spec in loadable:
            if isinstance(spec, VLLMSpec) and spec.layout != "auto":
                raise ValueError(f"places says where engines run: leave out layout = {spec.layout!r} of {spec.model!r}")
            if isinstance(spec, SimulatedSpec) and spec.count != 1:
                raise ValueError(f"places says how many engines there are: leave out count of {spec.model!r}")
        models = [spec.model for spec in self.engines]
        if twice := sorted({model for model in models if models.count(model) > 1}):
            raise ValueError(f"with places every model is named once, but {', '.join(twice)} is named twice")
        return self

    @classmethod
    def from_file(cls, path: str | Path) -> PoolConfig:
        """Read a TOML file. Raises `ConfigError` that names the file and the setting."""
        try:
            data = tomllib.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the pool configuration {path}: {error.strerror or error}") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        return cls.from_data(data, source=str(path))

    @classmethod
    def from_data(cls, data: Any, *, source: str) -> PoolConfig:
        """Validate plain data. Raises `ConfigError` that names `source` and the setting."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = [": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in error.errors()]
            raise ConfigError(f"{source}: " + "; ".join(lines)) from error

    @classmethod
    def discover(cls) -> PoolConfig:
        """The configuration of `$HALO_CONFIG`, else of `./halo.toml`, else an empty one (adopting endpoints)."""
        named = os.environ.get("HALO_CONFIG")
        if named:
            return cls.from_file(named)
        if Path("halo.toml").is_file():
            return cls.from_file("halo.toml")
        return cls()


def parse_models(pairs: list[str]) -> dict[str, str]:
    """Turn `APP_NAME=SERVED` command-line pairs into a name map. Raises `ConfigError` on anything else."""
    models: dict[str, str] = {}
    for pair in pairs:
        name, equals, served = pair.partition("=")
        if not (name and equals and served):
            raise ConfigError(f"--models takes APP_NAME=SERVED_MODEL (or '*=SERVED_MODEL'), not {pair!r}")
        models[name] = served
    return models
