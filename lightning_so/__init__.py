"""Second-order methods for PyTorch Lightning: curvature in front of the optimizer that you already have.

A name is imported when it is first asked for: what needs no torch does not wait for it, nor a plain loop for Lightning.
"""

import ast
import importlib
import pkgutil
from typing import TYPE_CHECKING

from lightning_so import strategies as strategies
from lightning_so.version import __version__ as __version__

if TYPE_CHECKING:
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
else:
    # The one list of public names is that of the imports above, which type checkers and editors read as they stand.
    _listed = ast.walk(ast.parse(pkgutil.get_data(__name__, "__init__.py")))
    _homes = {
        alias.name: node.module
        for node in _listed
        if isinstance(node, ast.ImportFrom) and node.module.startswith(f"{__name__}.")
        for alias in node.names
    }
    __all__ = sorted(_homes)

    def __getattr__(name):
        if name not in _homes:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        importlib.import_module(f"{__name__}.methods")  # Rules call them by name, whichever was asked for.
        globals()[name] = found = getattr(importlib.import_module(_homes[name]), name)
        return found

    def __dir__():
        return sorted({*globals(), *_homes})
