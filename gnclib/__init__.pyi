from .certify import certify_convex as certify_convex
from .certify import enclose_threshold as enclose_threshold
from .deep import NetworkEnergy as NetworkEnergy
from .deep import load_prior as load_prior
from .foe import FieldsOfExperts as FieldsOfExperts
from .gmm import GaussianMixture as GaussianMixture
from .images import psnr as psnr
from .restore import Denoising as Denoising
from .restore import Inpainting as Inpainting
from .restore import LearnedSchedule as LearnedSchedule
from .restore import NoiseCurve as NoiseCurve
from .restore import denoise_gnc as denoise_gnc
from .restore import estimate_sigma as estimate_sigma
from .restore import gnc_flow as gnc_flow
from .restore import inpaint_gnc as inpaint_gnc
from .restore import joint_descent as joint_descent
from .restore import posterior_components as posterior_components
from .restore import posterior_moments as posterior_moments

__version__: str
