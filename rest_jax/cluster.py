"""Joining the other processes of a job, and leaving them; see `hosts`."""

import contextlib
import importlib.util
import os
import socket
import sys
import time

from rest_jax import errors, hosts

HEARTBEAT_SECONDS = 100
BARRIER_SECONDS = 7200.0
_START_SECONDS = 300  # For all processes to be there.


def join(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_seconds: int = HEARTBEAT_SECONDS,
  barrier_seconds: float = BARRIER_SECONDS,
) -> None:
  """Joins the other processes, where arguments or the surroundings tell of any.

  Cloud TPU, Slurm (srun) and Open MPI are found by JAX; elsewhere all three
  arguments are needed. Must be called before anything asks JAX for devices.

  Args:
    coordinator_address: host:port of the first process.
    num_processes: how many there are.
    process_id: number of this one, from 0.
    heartbeat_seconds: after so long a silence a process is dead, and JAX ends
      the others with SIGABRT (status 134).
    barrier_seconds: how long processes wait for one that lives, but does not
      come.

  Raises:
    ConfigurationError: arguments are missing or wrong, or the others are not
      there.
  """
  given = {
    '--coordinator_address': coordinator_address,
    '--num_processes': num_processes,
    '--process_id': process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if missing and len(missing) < len(given):
    raise errors.ConfigurationError(
      f'{", ".join(missing)} must be given beside'
      f' {", ".join(name for name in given if name not in missing)}; on Cloud'
      ' TPU, under srun and mpirun none of the three is needed.'
    )
  if missing and not _found_cluster():
    return
  if not missing and not 0 <= process_id < num_processes:
    raise errors.ConfigurationError(
      f'--process_id={process_id} must be in 0 … {num_processes - 1}, with'
      f' --num_processes={num_processes}.'
    )
  if num_processes == 1:
    return
  import jax

  # Across processes the CPU has no collectives of its own.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      cluster_detection_method=None if missing else 'deactivate',
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=heartbeat_seconds,
    )
  except (RuntimeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    raise errors.ConfigurationError(
      f'the processes of the job did not find each other ({reason}): start the'
      ' same command on all hosts, and give --coordinator_address,'
      ' --num_processes and --process_id.'
    ) from error
  _meet(heartbeat_seconds, barrier_seconds)


def _found_cluster() -> bool:
  """Whether this process is one of several, as far as can be seen here."""
  for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'):
    if os.environ.get(name, '1') != '1':
      return True
  if importlib.util.find_spec('libtpu') is None:
    return False
  if os.environ.get('JAX_PLATFORMS', 'tpu').split(',')[0] != 'tpu':
    return False
  import jax  # noqa: F401, which looks for the chips of the machine.

  return 'TPU_SKIP_MDS_QUERY' not in os.environ


def _meet(heartbeat_seconds: int, barrier_seconds: float) -> None:
  """Learns the names of all hosts."""
  import jax
  from jax._src import distributed  # The service has no public name.

  if jax.process_count() == 1:
    return
  job = hosts.Job(
    distributed.global_state.client,
    jax.process_index(),
    ['an unknown host'] * jax.process_count(),
    heartbeat_seconds,
    barrier_seconds,
  )
  hosts.become(job)
  job.names = hosts.gather('names of hosts', socket.gethostname())


def leave(exit_code: int) -> None:
  """Ends this process, and the job with it; with one process it just returns.

  Args:
    exit_code: 0 if all went well here; another process may have failed still.
  """
  job = hosts.job()
  if job is None:
    return
  try:
    if not exit_code:
      hosts.gather('end', None)
      import jax

      jax.distributed.shutdown()
  except errors.HostsError as error:
    print(f'HostsError: {error}', file=sys.stderr)
    exit_code = error.exit_code
  if exit_code:
    with contextlib.suppress(RuntimeError):
      _await_others(job)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(exit_code)  # What waits for dead peers must not hold us up.


def _await_others(job: hosts.Job) -> None:
  """Lets the first process, which carries the news, go last."""
  job.client.key_value_set(f'{hosts.KEY}/left/{job.index}', '')
  deadline = time.monotonic() + job.heartbeat_seconds
  while job.index == 0 and time.monotonic() < deadline:
    left = job.client.key_value_dir_get(f'{hosts.KEY}/left/')
    if len(left) == len(job.names):
      # The last one is still on its way out.
      time.sleep(2 * hosts.POLL_SECONDS)
      return
    time.sleep(0.1)
