"""Many runs on a cluster: which runs are left, how they share jobs, submitting and watching them."""
