"""Ready hidden Markov models: Pyro programs written with `pyrohmm.markov`, built from the parts of `pyrohmm.nn`."""

from pyrohmm.models.alignment import match_states as match_states
from pyrohmm.models.alignment import overlap as overlap
from pyrohmm.models.bayesian_hmm import BayesianHMM as BayesianHMM
from pyrohmm.models.chain_guide import ChainGuide as ChainGuide
from pyrohmm.models.deep_markov import DeepMarkovModel as DeepMarkovModel
from pyrohmm.models.filter_state import FilterState as FilterState
from pyrohmm.models.filter_state import FilterUpdate as FilterUpdate
from pyrohmm.models.hmm import HMM as HMM
from pyrohmm.models.local_inference import LocalInference as LocalInference
from pyrohmm.models.mixed_effects import MixedEffectsHMM as MixedEffectsHMM
from pyrohmm.models.neural_hmm import NeuralHMM as NeuralHMM
from pyrohmm.models.structured_vae import StructuredVAE as StructuredVAE
from pyrohmm.models.switching import SwitchingLDS as SwitchingLDS
from pyrohmm.models.switching import SwitchingNLDS as SwitchingNLDS
from pyrohmm.models.switching import SwitchingSSM as SwitchingSSM
