from pathlib import Path

import pytest

from medusa_core.config import EngineConfig, HeadsConfig, SpeculationParams, model_location, split_revision
from medusa_core.errors import ConfigurationError, InvalidParameter, ModelNotFound


@pytest.mark.parametrize("name", ["max_context", "tree_nodes", "max_depth", "prefill_chunk", "num_threads"])
def test_sizes_below_one_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is 0"):
        EngineConfig(**{name: 0})  # type: ignore[arg-type]


def test_a_context_without_room_for_an_answer_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="max_context is 1, it must hold"):
        EngineConfig(max_context=1)


def test_a_prefix_cache_may_be_nothing_but_not_less() -> None:
    assert EngineConfig(prefix_cache=0).prefix_cache == 0
    with pytest.raises(ConfigurationError, match="prefix_cache is -1, it must be at least 0 MiB"):
        EngineConfig(prefix_cache=-1)


def test_heads_need_a_positive_shape() -> None:
    with pytest.raises(ConfigurationError, match="num_heads >= 1"):
        HeadsConfig(0, 1, 8, 8, True)


@pytest.mark.parametrize(("name", "value"), [("max_nodes", 0), ("epsilon", 0.0), ("delta", 1.5)])
def test_speculation_out_of_range_names_the_request_field(name: str, value: float) -> None:
    with pytest.raises(InvalidParameter) as caught:
        SpeculationParams(**{name: value})  # type: ignore[arg-type]
    assert caught.value.param == f"speculation.{name}"


def test_demo_is_the_shipped_checkpoint_and_other_names_stay_as_they_are() -> None:
    assert model_location("demo").endswith("checkpoint")
    assert model_location("some/base") == "some/base"


def test_a_tree_beyond_the_largest_useful_size_is_refused_with_the_limit() -> None:
    with pytest.raises(ConfigurationError, match="tree_nodes is 257, it must be at most 256"):
        EngineConfig(tree_nodes=257)


def test_an_unknown_kind_of_tree_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="tree is 'big', it must be dynamic or static"):
        EngineConfig(tree="big")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "../model", "~/no-such-model"])
def test_what_can_only_be_a_path_is_not_looked_for_on_a_hub(name: str) -> None:
    with pytest.raises(ModelNotFound, match=f"there is no '{name}'; check the path"):
        model_location(name)


def test_a_path_under_the_home_folder_is_expanded(tmp_path: Path) -> None:
    assert model_location(str(tmp_path)) == str(tmp_path)
    assert model_location("~") == str(Path.home())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1")),
        ("owner/name@", ("owner/name@", None)),
    ],
)
def test_a_hub_id_may_name_a_revision(source: str, expected: tuple[str, str | None]) -> None:
    assert split_revision(source) == expected


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "mine@home").mkdir()

    assert split_revision(str(tmp_path / "mine@home")) == (str(tmp_path / "mine@home"), None)


def test_heads_use_the_bases_lm_head_or_one_of_their_own() -> None:
    with pytest.raises(ConfigurationError, match="not both"):
        HeadsConfig(2, 1, 8, 8, True, one_lm_head=True)
    with pytest.raises(ConfigurationError, match="lm_head_rank >= 1, got 0"):
        HeadsConfig(2, 1, 8, 8, True, lm_head_rank=0)
