"""Second-order methods for PyTorch Lightning: curvature in front of the optimizer that you already have."""

from lightning_so import strategies as strategies
from lightning_so.callbacks.matrix_free import MatrixFree as MatrixFree
from lightning_so.callbacks.monitor import CurvatureMonitor as CurvatureMonitor
from lightning_so.callbacks.record.recorder import Recorder as Recorder
from lightning_so.callbacks.restart.loader import ResumableLoader as ResumableLoader
from lightning_so.callbacks.restart.restartable import Restartable as Restartable
from lightning_so.callbacks.restart.restartable import Stopped as Stopped
from lightning_so.callbacks.resume.check import resume_check as resume_check
from lightning_so.callbacks.resume.verdict import ResumeCheck as ResumeCheck
from lightning_so.callbacks.saddle import SaddleEscape as SaddleEscape
from lightning_so.callbacks.second_order import SecondOrder as SecondOrder
from lightning_so.callbacks.shadow.asked import Shadow as Shadow
from lightning_so.callbacks.sharpness import SharpnessGuard as SharpnessGuard
from lightning_so.contract.memory import Memory as Memory
from lightning_so.contract.spread import Staggered as Staggered
from lightning_so.contract.spread import Synchronous as Synchronous
from lightning_so.contract.ways import Ways as Ways
from lightning_so.core.attach.attach import attach as attach
from lightning_so.core.export import LayerCurvature as LayerCurvature
from lightning_so.core.export import curvature as curvature
from lightning_so.core.options import Overhead as Overhead
from lightning_so.core.plan.mixture import Mixture as Mixture
from lightning_so.errors import ConfigError as ConfigError
from lightning_so.errors import LaunchError as LaunchError
from lightning_so.errors import StateError as StateError
from lightning_so.errors import TrustError as TrustError
from lightning_so.linalg.damping import OfRate as OfRate
from lightning_so.linalg.damping import Relative as Relative
from lightning_so.methods.adahessian import AdaHessian as AdaHessian
from lightning_so.methods.adahessian import Sophia as Sophia
from lightning_so.methods.auto_step import AutoStep as AutoStep
from lightning_so.methods.directions import FewDirections as FewDirections
from lightning_so.methods.ekfac import EKFAC as EKFAC
from lightning_so.methods.kfac import KFAC as KFAC
from lightning_so.methods.levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from lightning_so.methods.muon import Muon as Muon
from lightning_so.methods.newton_cg import NewtonCG as NewtonCG
from lightning_so.methods.nystrom import Nystrom as Nystrom
from lightning_so.methods.ogr import OGR as OGR
from lightning_so.methods.quadratic_model import QuadraticModel as QuadraticModel
from lightning_so.methods.saddle_free import SaddleFreeKrylov as SaddleFreeKrylov
from lightning_so.methods.shampoo import Shampoo as Shampoo
from lightning_so.methods.soap import SOAP as SOAP
from lightning_so.monitor.spectrum import Spectrum as Spectrum
from lightning_so.monitor.spectrum import spectrum as spectrum
from lightning_so.version import __version__ as __version__

__all__ = [
    "EKFAC",
    "KFAC",
    "OGR",
    "SOAP",
    "AdaHessian",
    "AutoStep",
    "ConfigError",
    "CurvatureMonitor",
    "FewDirections",
    "LaunchError",
    "LayerCurvature",
    "LevenbergMarquardt",
    "MatrixFree",
    "Memory",
    "Mixture",
    "Muon",
    "NewtonCG",
    "Nystrom",
    "OfRate",
    "Overhead",
    "QuadraticModel",
    "Recorder",
    "Relative",
    "Restartable",
    "ResumableLoader",
    "ResumeCheck",
    "SaddleEscape",
    "SaddleFreeKrylov",
    "SecondOrder",
    "Shadow",
    "Shampoo",
    "SharpnessGuard",
    "Sophia",
    "Spectrum",
    "Staggered",
    "StateError",
    "Stopped",
    "Synchronous",
    "TrustError",
    "Ways",
    "__version__",
    "attach",
    "curvature",
    "resume_check",
    "spectrum",
]
