"""Newton's methods: least squares, conjugate gradients, Krylov, Nystrom, AdaHessian and Sophia."""
