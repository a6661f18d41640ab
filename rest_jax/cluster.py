"""Joining the other processes of a job, and leaving them; see `hosts`."""

import contextlib
import importlib.util
import os
import socket
import sys
import time

from rest_jax import errors, hosts
from rest_jax import job as job_lib

HEARTBEAT_SECONDS = 100
BARRIER_SECONDS = 7200.0
_START_SECONDS = 300  # For all processes to be there.
_NOBODY = 'coordinator_address should be defined'  # JAX found no others.


def join(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_seconds: int = HEARTBEAT_SECONDS,
  barrier_seconds: float = BARRIER_SECONDS,
) -> None:
  """Joins the other processes, where arguments or the surroundings tell of any.

  Cloud TPU, also on GKE, Slurm (srun) and Open MPI are found by JAX; elsewhere
  all three arguments are needed. Must be called before anything asks JAX for
  devices.

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
    HostsError: the others, which a TPU or Slurm has told of, are not there in
      time; to start again is a mend.
  """
  _check_flags(coordinator_address, num_processes, process_id)
  found = num_processes is None
  if num_processes == 1 or (found and not (_launched() or _on_tpu())):
    return
  import jax

  # Across processes the CPU has no collectives of its own.
  alone = jax.config.jax_cpu_collectives_implementation
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      cluster_detection_method=None if found else 'deactivate',
      initialization_timeout=_START_SECONDS,
      heartbeat_timeout_seconds=heartbeat_seconds,
      shutdown_timeout_seconds=heartbeat_seconds,
    )
  except (RuntimeError, ValueError, OSError) as error:
    reason = ' '.join(str(error).split())
    if found and not _launched() and _NOBODY in reason:
      # A machine with a TPU, and no other.
      jax.config.update('jax_cpu_collectives_implementation', alone)
      return
    text = (
      f'the processes of the job did not find each other ({reason}): start the'
      ' same command on all hosts, and give --coordinator_address,'
      ' --num_processes and --process_id; for a TPU of one host set'
      ' TPU_SKIP_MDS_QUERY=1.'
    )
    if found and 'DEADLINE_EXCEEDED' in reason:
      # Whoever started them knows of all, and one has only come too late.
      again = errors.PreemptionError.exit_code
      raise errors.HostsError(text, again) from error
    raise errors.ConfigurationError(text) from error
  _meet(heartbeat_seconds, barrier_seconds)


def _check_flags(
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
) -> None:
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
  if not missing and not 0 <= process_id < num_processes:
    raise errors.ConfigurationError(
      f'--process_id={process_id} must be in 0 … {num_processes - 1}, with'
      f' --num_processes={num_processes}.'
    )


def _launched() -> bool:
  """Whether srun or mpirun has started several processes."""
  names = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
  return any(os.environ.get(name, '1') != '1' for name in names)


def _on_tpu() -> bool:
  """Whether this machine may be one of several with a TPU."""
  if importlib.util.find_spec('libtpu') is None:
    return False
  if os.environ.get('JAX_PLATFORMS', 'tpu').split(',')[0] != 'tpu':
    return False
  import jax  # noqa: F401, which looks for the chips of the machine.

  # GKE, which tells of the workers of a slice, has libtpu not ask for them.
  told = os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  return 'TPU_SKIP_MDS_QUERY' not in os.environ or len(told) > 1


def _meet(heartbeat_seconds: int, barrier_seconds: float) -> None:
  """Learns the names of all hosts."""
  import jax
  from jax._src import distributed  # The service has no public name.

  if jax.process_count() == 1:
    return
  job = job_lib.Job(
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
  except errors.HostsError as error:
    print(f'HostsError: {error}', file=sys.stderr)
    exit_code = error.exit_code
  except RuntimeError as error:  # The service is gone, with its process.
    reason = ' '.join(str(error).split())
    print(f'HostsError: {job.describe(0)} is gone: {reason}', file=sys.stderr)
    exit_code = errors.HostsError.exit_code
  if not exit_code:
    import jax

    with contextlib.suppress(RuntimeError):  # All is done, in all of them.
      jax.distributed.shutdown()
  if exit_code:
    with contextlib.suppress(RuntimeError):
      job.say_that_it_leaves()
      if job.index == 0:  # It carries the news, so it goes last.
        hosts.await_others()
        time.sleep(2 * job_lib.POLL_SECONDS)  # They are still on their way.
  end(exit_code)  # What waits for dead peers must not hold us up.


def end(exit_code: int) -> None:
  """Ends this process at once, whatever its threads and libraries do."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(exit_code)
