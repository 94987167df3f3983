"""An independent SOAP in float64, the oracle of the tests and of `benchmarks/training/reference.py`."""

import math

import torch


class Reference:
    """SOAP in float64 for one square matrix, written from the equations and not from the package.

    torch AdamW's eps and decay; factors folded before the step, ridge in every solve, one QR iteration a step from the
    identity, rotated from the first step on.
    """

    def __init__(self, W, lr, betas, eps, wd, beta, ridge):
        self.W, self.lr, self.betas, self.eps, self.wd, self.beta, self.ridge = W, lr, betas, eps, wd, beta, ridge
        n = len(W)
        self.L, self.R = torch.zeros(n, n).double(), torch.zeros(n, n).double()
        self.QL, self.QR = torch.eye(n).double(), torch.eye(n).double()
        self.m, self.v, self.t = torch.zeros(n, n).double(), torch.zeros(n, n).double(), 0

    def solve(self, F, Q):
        n = len(F)
        slope = torch.tensor([1 - 0.5 * i / (n - 1) for i in range(n)]).double()
        F = F + torch.diag(self.ridge * torch.trace(F) / n * slope)
        order = sorted(range(n), key=lambda j: -float(Q[:, j] @ F @ Q[:, j]))
        # Gram-Schmidt, twice, column by column: no LAPACK, and the signs are those of a positive R.
        columns = []
        for j in order:
            q = F @ Q[:, j]
            for _ in range(2):
                for c in columns:
                    q = q - c * (c @ q)
            columns.append(q / math.sqrt(float(q @ q)))
        return torch.stack(columns, 1), order

    def step(self, G):
        self.t += 1
        self.L = self.beta * self.L + (1 - self.beta) * G @ G.T
        self.R = self.beta * self.R + (1 - self.beta) * G.T @ G
        b1, b2 = self.betas
        # Moments that no sequence of gradients leaves are raised to those that one can: Cauchy-Schwarz, sum(p q g) with
        # p, q the weights of the two averages.
        least = 1 / sum(((1 - b1) * b1**i) ** 2 / ((1 - b2) * b2**i) for i in range(2000))
        Q, rows = self.solve(self.L, self.QL)
        self.m, self.QL = Q.T @ self.QL @ self.m, Q
        if self.t > 1:
            self.v = torch.maximum(self.v[rows], least * self.m**2)
        Q, cols = self.solve(self.R, self.QR)
        self.m, self.QR = self.m @ self.QR.T @ Q, Q
        if self.t > 1:
            self.v = torch.maximum(self.v[:, cols], least * self.m**2)
        g = self.QL.T @ G @ self.QR
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        d = (self.m / (1 - b1**self.t)) / ((self.v / (1 - b2**self.t)).sqrt() + self.eps)
        self.W = self.W * (1 - self.lr * self.wd) - self.lr * self.QL @ d @ self.QR.T
