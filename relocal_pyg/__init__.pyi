from . import training as training
from .data.pair_data import PairData as PairData
from .evaluation.metrics import MomentMAP as MomentMAP
from .graph import PairGraph as PairGraph
from .models.checkpoint import load_model as load_model
from .models.matcher import MultiGraphMatcher as MultiGraphMatcher
from .models.matchers import ContrastMatcher as ContrastMatcher
from .models.multi_graph import MultiGraphRelocalizer as MultiGraphRelocalizer
from .nn.conv import MultiGraphConv as MultiGraphConv
from .nn.conv import SumConv as SumConv
from .video.find import find_moments as find_moments

__version__: str
