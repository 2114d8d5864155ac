"""Uploads a folder to the Hugging Face Hub, where that is asked for."""

import pathlib
import re

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id

from tlkd_jax.runtime.errors import RunError


def check(name: str) -> None:
  """Asks the hub who we are, before any work.

  Args:
    name: ORGANISATION/NAME of the repository.

  Raises:
    ValueError: no such name can be, or there is no token, or the hub knows it
      not, or cannot be reached.
  """
  try:
    validate_repo_id(name)
  except hub_errors.HFValidationError as error:
    raise ValueError(f'{_wrong_name(name)} ({error})') from error
  if not re.fullmatch('[^/]+/[^/]+', name):
    raise ValueError(_wrong_name(name))
  token = huggingface_hub.get_token()
  if not token:
    raise ValueError(
      f'--push {name}: no token of the Hugging Face Hub is known; log in with '
      '`hf auth login` or set HF_TOKEN'
    )
  if constants.HF_HUB_OFFLINE:
    raise ValueError(
      f'--push {name}: HF_HUB_OFFLINE is set, so that nothing is uploaded'
    )
  try:
    huggingface_hub.HfApi().whoami(token=token)
  # Errors of the network are of whatever library a version of the client uses.
  except Exception as error:
    raise ValueError(f'--push {name}: {_why(error, token)}') from error


def _wrong_name(name: str) -> str:
  return (
    f'--push {name!r}: no name of a repository; accepted: ORGANISATION/NAME'
  )


def push(folder: pathlib.Path, name: str, files: tuple[str, ...]) -> str:
  """Uploads a folder as one commit; returns what to tell the user.

  A repository that is not there is made, and is private.

  Args:
    folder: whole.
    name: as of `check`.
    files: names of those that are uploaded.

  Raises:
    RunError: the hub did not take it; the folder stays.
  """
  token = huggingface_hub.get_token() or ''
  api = huggingface_hub.HfApi()
  try:
    found = api.repo_exists(name, token=token)
    if not found:
      api.create_repo(name, private=True, exist_ok=True, token=token)
    api.upload_folder(
      repo_id=name,
      folder_path=folder,
      allow_patterns=list(files),
      commit_message='Student exported by tlkd_jax',
      token=token,
    )
  except Exception as error:
    raise RunError(
      f'{folder} is written, and was not uploaded to {name}: '
      f'{_why(error, token)}'
    ) from error
  made = '' if found else ', a new private repository'
  return f'{folder}: uploaded to {constants.ENDPOINT}/{name}{made}'


def _why(error: Exception, token: str) -> str:
  """The first line of an error, in which no token is told."""
  response = getattr(error, 'response', None)
  status = getattr(response, 'status_code', None)
  if status == 401:
    return f'{constants.ENDPOINT} does not know this token (401)'
  if status == 403:
    return f'this token may not write there (403, {constants.ENDPOINT})'
  lines = str(error).strip().splitlines() or [type(error).__name__]
  first = lines[0].replace(token, '...') if token else lines[0]
  if status is None:
    return f'{constants.ENDPOINT} cannot be reached ({first})'
  return first
