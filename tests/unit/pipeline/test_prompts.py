"""Requests of many lengths as sequences that are run once each, in forwards of bounded size."""

from hypothesis import given
from hypothesis import strategies as st

from bitpress_workers.pipeline.placement import MICRO_BATCH_TOKENS
from bitpress_workers.pipeline.prompts import Prompts, padded

tokens = st.lists(st.integers(1, 4), min_size=1, max_size=40).map(tuple)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=60), st.integers(80, 90))
def test_every_request_is_scored_at_the_end_of_its_sequence(
    requests: list[tuple[tuple[int, ...], tuple[int, ...]]], max_length: int
) -> None:
    prompts = Prompts.of(requests, max_length)
    for (context, continuation), (sequence, number) in zip(requests, prompts.places, strict=True):
        assert prompts.continuations[sequence][number] == continuation
        length = prompts.lengths[sequence]
        run = prompts.tokens_NS[sequence].tolist()
        assert tuple(run[:length]) == (context + continuation)[:-1][-max_length:] and not any(run[length:])
    assert len(set(prompts.places)) == len(set(requests))
    sequences = [tuple(row[:length]) for row, length in zip(prompts.tokens_NS.tolist(), prompts.lengths, strict=True)]
    assert len(set(sequences)) == len(sequences)


@given(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=60))
def test_forwards_hold_every_sequence_once_and_are_not_too_large(
    requests: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    prompts = Prompts.of(requests * 3, 512)
    assert [row for batch in prompts.batches for row in batch] == list(range(len(prompts.lengths)))
    for batch in prompts.batches:
        assert len(batch) * padded(prompts.lengths[batch[-1]]) <= MICRO_BATCH_TOKENS


def test_answers_go_back_to_their_requests() -> None:
    prompts = Prompts.of([((1, 2), (3,)), ((1,), (2, 4)), ((1, 2), (5,))], 16)
    assert prompts.lengths == (2,) and prompts.places == ((0, 0), (0, 1), (0, 2))
    answers = [[(-1.0, True), (-2.0, False), (-3.0, False)]]
    assert prompts.answers(answers) == answers[0]
