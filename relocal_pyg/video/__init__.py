"""From video files to features and clips: decoding, backbones, extraction, PCA, cutting.

PyAV, scikit-learn and the EfficientNet weights come with the extra ``relocal_pyg[video]`` and are
imported only by what needs them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
