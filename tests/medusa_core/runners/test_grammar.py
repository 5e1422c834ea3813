import torch

from medusa_core.constraints import Grammar
from medusa_core.memory import NOTHING
from medusa_core.runners.grammar import check_tree, host_tree, unpack_masks, what_follows
from medusa_core.tree import CandidateTree, TreeTopology
from tests.cast import CPU
from tests.tiny_tokenizers import JSON_TOKENS, grammar_vocabulary

V, END = 23, 2
VOCABULARY = grammar_vocabulary(V, END)


def token(spelling: str) -> int:
    place = JSON_TOKENS.index(spelling)
    return place + (place >= END)


A, B, COMMA = token("a"), token("b"), token(",")


def test_packed_masks_become_one_bool_a_token() -> None:
    found = unpack_masks([b"\x01\x80\x02", None, b"\xff"], 20, CPU)

    assert found.shape == (3, 20)
    assert found[0].nonzero()[:, 0].tolist() == [0, 15, 17]
    assert bool(found[1].all())
    assert found[2].tolist() == [True] * 8 + [False] * 12


def test_drafters_are_told_what_may_and_what_must_follow() -> None:
    choice = VOCABULARY.compile(Grammar.lark('start: "a," | "b,"').text)
    before = what_follows(choice, choice.forced(), 3, V, CPU)
    choice.advance([B])
    behind = what_follows(choice, choice.forced(), 3, V, CPU)

    assert before.allowed.nonzero()[:, 0].tolist() == [A, B]
    assert before.forced.kinds.tolist() == [NOTHING] * 3
    assert behind.allowed.nonzero()[:, 0].tolist() == [COMMA]
    assert behind.forced.tokens.tolist()[0] == COMMA


def test_forbidden_branches_leave_the_tree_and_every_other_node_has_its_own_mask() -> None:
    constraint = VOCABULARY.compile(Grammar.lark('start: "ab" | "ba," | "b,a"').text)
    constraint.advance([B])
    topology = TreeTopology.from_paths([(0,), (1,), (2,), (0, 0), (2, 0)])
    tree = CandidateTree.from_topology(topology, torch.tensor([B, A, COMMA, B, COMMA, A]))

    pruned, allowed = check_tree(constraint, tree, host_tree(tree), V)

    assert pruned.used.tolist() == [True, True, True, False, True, False]
    rows = [row.nonzero()[:, 0].tolist() for row in allowed]
    assert rows[:3] == [sorted([A, COMMA]), [COMMA], [A]]
    assert rows[4] == [END]
    assert rows[3] == rows[5] == list(range(V))
