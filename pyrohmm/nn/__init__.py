"""Parts of a hidden Markov model as modules: initial and transition logits, emissions, encoders for guides.

Every part is a `pyro.nn.PyroModule`. Its parameters are real-valued and live in the module, so it trains with any
torch optimiser and any of its parameters can be replaced by a `pyro.nn.PyroSample` prior. `state` broadcasts against
`inputs` and `previous` from the right: an enumerated state (K, 1, 1) against inputs (B, T, C) gives (K, B, T).
"""

from pyrohmm.nn.combiner import Combiner as Combiner
from pyrohmm.nn.dynamics import GatedTransition as GatedTransition
from pyrohmm.nn.dynamics import GaussianTransition as GaussianTransition
from pyrohmm.nn.emission.bernoulli import BernoulliEmission as BernoulliEmission
from pyrohmm.nn.emission.bounded import BetaEmission as BetaEmission
from pyrohmm.nn.emission.categorical import CategoricalEmission as CategoricalEmission
from pyrohmm.nn.emission.circular import VonMisesEmission as VonMisesEmission
from pyrohmm.nn.emission.composite import CompositeEmission as CompositeEmission
from pyrohmm.nn.emission.counts import NegativeBinomialEmission as NegativeBinomialEmission
from pyrohmm.nn.emission.counts import PoissonEmission as PoissonEmission
from pyrohmm.nn.emission.counts import ZeroInflatedNegativeBinomialEmission as ZeroInflatedNegativeBinomialEmission
from pyrohmm.nn.emission.counts import ZeroInflatedPoissonEmission as ZeroInflatedPoissonEmission
from pyrohmm.nn.emission.factor_analysis import FactorAnalysisEmission as FactorAnalysisEmission
from pyrohmm.nn.emission.gaussian import GaussianEmission as GaussianEmission
from pyrohmm.nn.emission.mixture import GaussianMixtureEmission as GaussianMixtureEmission
from pyrohmm.nn.emission.multinomial import MultinomialEmission as MultinomialEmission
from pyrohmm.nn.emission.neural import AutoregressiveEmission as AutoregressiveEmission
from pyrohmm.nn.emission.neural import NeuralEmission as NeuralEmission
from pyrohmm.nn.emission.positive import ExponentialEmission as ExponentialEmission
from pyrohmm.nn.emission.positive import GammaEmission as GammaEmission
from pyrohmm.nn.emission.positive import LogNormalEmission as LogNormalEmission
from pyrohmm.nn.emission.regression import LinearAutoregressiveEmission as LinearAutoregressiveEmission
from pyrohmm.nn.emission.regression import LinearRegressionEmission as LinearRegressionEmission
from pyrohmm.nn.emission.regression import LogisticRegressionEmission as LogisticRegressionEmission
from pyrohmm.nn.emission.regression import PoissonRegressionEmission as PoissonRegressionEmission
from pyrohmm.nn.emission.student import StudentTEmission as StudentTEmission
from pyrohmm.nn.emission.tied import TiedEmission as TiedEmission
from pyrohmm.nn.emitter import Emitter as Emitter
from pyrohmm.nn.encoder.chain import ChainEncoder as ChainEncoder
from pyrohmm.nn.encoder.convolutional import ConvolutionalEncoder as ConvolutionalEncoder
from pyrohmm.nn.encoder.encoder import Encoder as Encoder
from pyrohmm.nn.encoder.encoder import StepEncoder as StepEncoder
from pyrohmm.nn.encoder.pooled import PooledEncoder as PooledEncoder
from pyrohmm.nn.encoder.recurrent import RecurrentEncoder as RecurrentEncoder
from pyrohmm.nn.encoder.transformer import TransformerEncoder as TransformerEncoder
from pyrohmm.nn.initial import Initial as Initial
from pyrohmm.nn.masks import banded as banded
from pyrohmm.nn.masks import left_to_right as left_to_right
from pyrohmm.nn.part import Part as Part
from pyrohmm.nn.periodic import PeriodicTransition as PeriodicTransition
from pyrohmm.nn.priors import InverseWishart as InverseWishart
from pyrohmm.nn.priors import NormalInverseGamma as NormalInverseGamma
from pyrohmm.nn.priors import NormalInverseWishart as NormalInverseWishart
from pyrohmm.nn.regression import RegressionInitial as RegressionInitial
from pyrohmm.nn.regression import RegressionTransition as RegressionTransition
from pyrohmm.nn.stationary import StationaryInitial as StationaryInitial
from pyrohmm.nn.switching import SwitchingDynamics as SwitchingDynamics
from pyrohmm.nn.tied import TiedTransition as TiedTransition
from pyrohmm.nn.transition import NeuralTransition as NeuralTransition
from pyrohmm.nn.transition import Transition as Transition
