"""Did the treatment help? Rows of runs in; tests, verdicts and words out.

Every page asks this package and adds nothing to what it says, so that no two
can disagree about the same runs. `conclusions.draw` asks for everything at
once. The method, for any two arms, `arm` and `reference`:

- **A place** is a data set and a train size (and a recipe, where runs of one
  data set differ in more than their arm). At a place the arms are paired by
  seed: runs of one seed share data subset, order and augmentation. Two runs
  that say that they answered to different test images are no pair.
- **All places** (`effects.overall`): each seed's mean difference, in which each
  data set weighs the same and so does each place of a data set. A seed counts
  when every place has it that the study stated; where nothing was stated,
  places with fewer pairs than the most are left out by name.
- **The verdict** (`decision`): helps, hurts, equal within the margin, or not
  yet known, by intervals of that mean over seeds and test images together
  (`hits`), wide enough for a look after every seed (`plan`). One that two test
  images of one cell would change is 'not yet known', as is everything of runs
  without the answers to single images.
- **One place** (`effects.per_place`): the mean difference over seeds with its
  95 % t interval and the exact sign-flip test, which assumes nothing about the
  shape of the differences. Its p is corrected by Holm over the places of that
  arm and metric, and the corrected p gives the verdict; of accuracy only where
  the interval over seeds and test images agrees, whatever two images of one
  cell say. For one seed there is an interval over the test images (percentile
  bootstrap), and McNemar's test.
- **Secondary metrics** over all places: the sign-flip test, corrected by Holm
  over the metrics.
- **One seed** says nothing about the method.
- **In labels** (`worth.in_labels`): how many per cent more labels the reference
  needs for the same accuracy, see evaluation.label_curves.
- **Rivals** (`conclusions.Rival`): each arm without a teacher against the
  reference, and the treatment against it, by the test over all places.

`decision.decide_primary` alone gives the verdict of the answer, and
`verdicts.decide` that of one place or metric.
"""
