"""torbi: Viterbi decoding in CUDA, a block of threads for each sequence; one transition matrix."""

import torbi

from benchmarks.problem import Job, Problem, path_score


def prepare(operation: str, problem: Problem) -> Job | None:
    """Set decoding up."""
    shape, initial, transition, observation = problem
    if operation != "viterbi" or shape.time_varying:
        return None
    observation = observation.clone()  # it writes there: what it computes with has the smallest float32 added
    matrix = transition.T.contiguous()  # its rows are the states to go to
    gpu = observation.device.index

    def decode():
        return torbi.from_probabilities(observation, None, matrix, initial, log_probs=True, gpu=gpu)

    return Job(decode, lambda states: {"score": path_score(problem, states)})
