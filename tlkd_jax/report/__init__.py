# Resamples of the test images; here, where nothing heavy is loaded.
REPLICATES = 1000
