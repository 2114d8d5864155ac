"""How closely a student follows its teacher on the same examples.

Every function takes the student's logits first and the teacher's second, both
[N, K], computes in float64 and returns a float. Natural logarithms.
"""

from tlkd_jax.evaluation import predictions


def _check_pair(student_logits, teacher_logits):
  student = predictions.check_logits(student_logits, 'student_logits')
  teacher = predictions.check_logits(teacher_logits, 'teacher_logits')
  if student.shape != teacher.shape:
    raise ValueError(
      'student_logits and teacher_logits must have one shape (same examples, '
      f'same classes), got {student.shape} and {teacher.shape}'
    )
  return student, teacher


def agreement(student_logits, teacher_logits, labels=None) -> float:
  """Share of examples on which both predict the same class."""
  del labels
  student, teacher = _check_pair(student_logits, teacher_logits)
  same = predictions.predicted_class(student) == predictions.predicted_class(
    teacher
  )
  return float(same.mean())
