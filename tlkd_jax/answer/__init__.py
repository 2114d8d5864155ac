"""Did the treatment help? Rows of runs in; tests, verdicts and words out.

Every page asks this package and adds nothing to what it says, so that no two
can disagree about the same runs. `conclusions.draw` asks for everything at
once. The method, for any two arms, `arm` and `reference`:

- **A place** is a data set and a train size (and a recipe, where runs of one
  data set differ in more than their arm). At a place the arms are paired by
  seed: runs of one seed share data subset, order and augmentation. Two runs
  that say that they answered to different test images are no pair.
- **One place** (`effects.per_place`): the mean difference over seeds with its
  95 % t interval and the exact sign-flip test, which assumes nothing about the
  shape of the differences. Its p is corrected by Holm over the places of that
  arm and metric, and the corrected p gives the verdict. For accuracy there is
  an interval over the test images too (percentile bootstrap of the mean over
  seeds), where the answers to single images are at hand.
- **All places** (`effects.overall`): one test of each seed's mean difference,
  in which each data set weighs the same and so does each place of a data set.
  Nothing is corrected, for it is one question. Of a study that is not finished,
  places with fewer pairs than the most are left out by name.
- **One seed** says nothing about the method: the verdict is 'inconclusive'. At
  one place the two models are compared over the test images instead, by
  McNemar's test and the interval over images.
- **In labels** (`worth.in_labels`): how many per cent more labels the reference
  needs for the same accuracy, see evaluation.curves.
- **Rivals** (`conclusions.Rival`): each arm without a teacher against the
  reference, and the treatment against it, by the test over all places.

`verdicts.decide` alone turns numbers into a verdict.
"""
