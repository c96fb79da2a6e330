"""What engines are told of the host's block store."""

from __future__ import annotations

from pathlib import Path

import pytest

from halo_core.cli import checks
from halo_core.errors import ConfigError
from halo_core.kv import BlockStore, default_cap_bytes, store_root
from halo_core.pool import PoolConfig, VLLMSpec
from halo_core.pool.sharing import SharedStore, store_settings
from halo_core.pool.vllm_command import StoreSettings

MODEL_CONFIG = (
    '{"num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "num_hidden_layers": 30, "dtype": "bfloat16"}'
)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VLLMSpec:
    monkeypatch.delenv("HALO_KV_SHARING", raising=False)
    monkeypatch.setenv("HALO_KV_STORE", str(tmp_path / "store"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(MODEL_CONFIG)
    return VLLMSpec(model="m", path=str(tmp_path / "model"))


def test_engines_share_by_default(spec: VLLMSpec, tmp_path: Path) -> None:
    found = store_settings(spec.model_copy(update={"kv_store_gib": 1.0}), "float32")
    assert found == StoreSettings(
        str(tmp_path / "store" / "halo-kv"), 1 << 30, required=False, check=False, token_bytes=46_080
    )


def test_room_is_bounded_by_what_the_file_system_has(spec: VLLMSpec, tmp_path: Path) -> None:
    found = store_settings(spec, "float32")
    assert found is not None
    assert 0 < found.cap_bytes == pytest.approx(default_cap_bytes(tmp_path / "store" / "halo-kv"), rel=0.2)
    assert store_root() == tmp_path / "store" / "halo-kv"


@pytest.mark.parametrize(("wanted", "env"), [("off", ""), ("auto", "off"), ("on", "off")])
def test_it_can_be_switched_off(spec: VLLMSpec, monkeypatch: pytest.MonkeyPatch, wanted: str, env: str) -> None:
    if env:
        monkeypatch.setenv("HALO_KV_SHARING", env)
    assert store_settings(spec.model_copy(update={"kv_sharing": wanted}), "float32") is None


def test_a_setting_that_is_none_names_the_cure(spec: VLLMSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALO_KV_SHARING", "yes")
    with pytest.raises(ConfigError, match="auto, on or off, not 'yes'"):
        store_settings(spec, "float32")
    with pytest.raises(ConfigError, match="kv_sharing"):
        PoolConfig.from_data({"engines": [{"kind": "vllm", "model": "m", "kv_sharing": "maybe"}]}, source="halo.toml")


def test_an_end_of_the_store_counts_on_after_a_restart(tmp_path: Path) -> None:
    settings = StoreSettings(str(tmp_path / "store"), 1 << 20, token_bytes=1024)
    (tmp_path / "one").write_bytes(b"")
    shared = SharedStore(settings, tmp_path / "one")
    assert shared.cap_tokens == 1024
    shared._counters.add(saved_blocks=3)
    shared.counts_in(tmp_path / "two")
    shared._counters.add(saved_blocks=2)
    assert shared.counters()["saved_blocks"] == 5
    other = BlockStore(tmp_path / "store", "kind", 1 << 20)
    other.save(bytes(32), [memoryview(b"data")])
    assert shared.used_bytes > 0
    shared.clear()
    assert not other.holds(bytes(32))
    other.close()
    shared.close()


def test_the_doctor_says_what_is_shared_and_what_is_off(
    spec: VLLMSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (check,) = checks.sharing(PoolConfig(engines=(spec.model_copy(update={"kv_store_gib": 1.0}),)))
    assert (check.subject, check.state) == ("kv m", "ok")
    assert f"block store in {tmp_path / 'store' / 'halo-kv'}, up to 1.1 GB" in check.found
    (check,) = checks.sharing(PoolConfig(engines=(spec.model_copy(update={"kv_sharing": "off"}),)))
    assert (check.state, check.found) == ("off", "engines share no KV: kv_sharing is off")
    monkeypatch.setenv("HALO_KV_SHARING", "perhaps")
    (check,) = checks.sharing(PoolConfig(engines=(spec,)))
    assert check.state == "fail"
    store = BlockStore(tmp_path / "store" / "halo-kv", "kind", 1 << 30)
    store.save(bytes(32), [memoryview(bytes(3_000_000))])
    assert [c.found for c in checks.sharing(PoolConfig())] == [f"3 MB in {tmp_path / 'store' / 'halo-kv'} now"]
    store.close()


def test_a_store_of_another_user_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(PermissionError, match="another user"):
        BlockStore(tmp_path / "store", "kind", 1)
