import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pyrohmm.nn import RecurrentEncoder


def test_one_layer_is_torchs_bidirectional_unit_on_packed_sequences():
    encoder = RecurrentEncoder(3, 8, missing=None)
    unit = torch.nn.GRU(3, 4, batch_first=True, bidirectional=True)
    for way, suffix in (("from_left", ""), ("from_right", "_reverse")):
        for name, value in encoder.layers[0][way].named_parameters():
            getattr(unit, name + suffix).data.copy_(value.data)
    x, lengths = torch.randn(4, 6, 3), torch.tensor([6, 2, 1, 5])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected = pad_packed_sequence(unit(packed)[0], batch_first=True)[0]
    assert torch.allclose(encoder(x, lengths), expected, atol=1e-6)


def test_dropout_is_between_layers_and_only_in_training():
    encoder = RecurrentEncoder(3, 8, num_layers=2, dropout=0.5)
    x = torch.randn(2, 5, 3)
    assert not torch.equal(encoder(x), encoder(x))
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))
