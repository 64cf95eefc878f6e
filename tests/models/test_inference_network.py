import pytest
import torch

from pyrohmm.models.inference_network import inference_network


@pytest.mark.parametrize(
    ("inference", "direction", "num_features"),
    [("mean-field", "both", 12), ("left-right", "forward", 6), ("right-left", "backward", 6), ("both", "both", 12)],
)
def test_directions_and_sizes(inference, direction, num_features):
    encoder, combiner = inference_network(inference, 5, 2, 6, torch.Generator().manual_seed(0))
    assert (encoder.direction, encoder.num_features, encoder.missing) == (direction, num_features, "entries")
    assert (combiner.before is None) == (inference == "mean-field")
    again, _ = inference_network(inference, 5, 2, 6, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), again.parameters(), strict=True))


def test_another_kind():
    with pytest.raises(ValueError, match="inference: expected one of .*, got 'sideways'"):
        inference_network("sideways", 5, 2, 6, None)
