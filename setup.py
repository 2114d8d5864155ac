"""What the wheel holds; all else stands in pyproject.toml."""

import setuptools

# Configurations stay at the top of a checkout, where they are edited, and go
# with the package, which finds them from any folder.
setuptools.setup(
  packages=[
    *setuptools.find_packages(include=['tlkd_jax', 'tlkd_jax.*']),
    'tlkd_jax.configs',
  ],
  package_dir={'tlkd_jax.configs': 'configs'},
)
