"""Simulated series: AR(1), Ornstein-Uhlenbeck, geometric Brownian motion, rough Bergomi."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from models.common.config import Count, Positive
from tasks.data.sources.series_base import SeriesSettings, SeriesSource, simulated_source

Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Within = Annotated[float, Field(strict=True, gt=-1, lt=1)]
Correlation = Annotated[float, Field(strict=True, ge=-1, le=1)]
Hurst = Annotated[float, Field(strict=True, gt=0, lt=0.5)]
Substeps = Annotated[int, Field(strict=True, ge=1, le=64)]


class Simulated(SeriesSettings):
    """What all simulated series have."""

    count: Count = 10000
    """Series to simulate, the held-out ones included."""

    def _rng(self) -> Any:
        import numpy as np

        return np.random.default_rng(self.seed)


class AR1Dataset(Simulated):
    """x_{k+1} = phi x_k + noise z_k from its stationary law."""

    kind: Literal["ar1"] = "ar1"
    phi: Within = 0.9
    """Autocorrelation at lag 1."""
    noise: Positive = 1.0
    """Standard deviation of one step's noise."""

    def open(self, root: Path) -> SeriesSource:
        from models.processes.gaussian import ar1

        made = ar1(self.count, self.length, self.phi, self.noise, self._rng())
        title = f"AR(1), phi {self.phi:g}"
        return simulated_source(title, made[:, None], self.holdout, ("x",))


class OUDataset(Simulated):
    """dX = theta (mu - X) dt + sigma dW."""

    kind: Literal["ou"] = "ou"
    dt: Positive = 0.1
    """Time between two points."""
    theta: Positive = 1.0
    """Rate of the return to mu."""
    mu: Real = 0.0
    """Long-run mean."""
    sigma: Positive = 1.0
    """Volatility."""
    start: Real | None = None
    """X at time 0, one dt before the first point; null: the stationary law."""

    def open(self, root: Path) -> SeriesSource:
        from models.processes.gaussian import ornstein_uhlenbeck

        made = ornstein_uhlenbeck(
            self.count,
            self.length,
            self.dt,
            self._rng(),
            theta=self.theta,
            mu=self.mu,
            sigma=self.sigma,
            start=self.start,
        )
        title = f"Ornstein-Uhlenbeck, theta {self.theta:g}"
        return simulated_source(title, made[:, None], self.holdout, ("x",))


class GBMDataset(Simulated):
    """dS = mu S dt + sigma S dW."""

    kind: Literal["gbm"] = "gbm"
    dt: Positive = 0.03125
    """Time between two points."""
    mu: Real = 0.05
    """Drift."""
    sigma: Positive = 0.2
    """Volatility."""
    start: Positive = 1.0
    """S at time 0, one dt before the first point."""

    def open(self, root: Path) -> SeriesSource:
        from models.processes.gaussian import geometric_brownian_motion

        given = {"mu": self.mu, "sigma": self.sigma, "start": self.start}
        made = geometric_brownian_motion(self.count, self.length, self.dt, self._rng(), **given)
        title = f"geometric Brownian motion, sigma {self.sigma:g}"
        return simulated_source(title, made[:, None], self.holdout, ("price",))


class RoughBergomiDataset(Simulated):
    """Log-price and log-variance of the rough Bergomi model."""

    kind: Literal["rough_bergomi"] = "rough_bergomi"
    dt: Positive = 0.03125
    """Time between two points, in years."""
    hurst: Hurst = 0.1
    """H: the smaller, the rougher the variance."""
    eta: Positive = 1.9
    """Volatility of the variance."""
    rho: Correlation = -0.9
    """Correlation of price and variance."""
    xi0: Positive = 0.04
    """Forward variance, flat."""
    substeps: Substeps = 8
    """Grid points in one dt for the price's integral."""

    def open(self, root: Path) -> SeriesSource:
        from models.processes.rough_bergomi import rough_bergomi

        made = rough_bergomi(
            self.count,
            self.length,
            self.dt,
            self._rng(),
            hurst=self.hurst,
            eta=self.eta,
            rho=self.rho,
            xi0=self.xi0,
            substeps=self.substeps,
        )
        title = f"rough Bergomi, H {self.hurst:g}"
        return simulated_source(title, made, self.holdout, ("log_price", "log_variance"))
