"""The command line: open_lth SUBCOMMAND [BRANCH] [--flags]."""

import os
import sys

from open_lth.cli import arg_utils, runner_registry
from open_lth.foundations.errors import UserError

_WIDTH = 82


def main():
    """Runs the command in sys.argv. Exit status: 0 done, 1 unknown command, 2 bad input, 130 interrupted."""
    try:
        _dispatch()
    except (UserError, OSError) as e:
        sys.exit(_complain(e))
    except KeyboardInterrupt:
        print('\nInterrupted. Type the same command again to continue where it stopped.', file=sys.stderr)
        sys.exit(130)


def banner(*lines):
    """Text framed as OpenLTH frames its help."""
    return '\n'.join(['=' * _WIDTH, 'OpenLTH: A Framework for Research on Lottery Tickets and Beyond', '-' * _WIDTH,
                      *lines])


def _dispatch():
    runner_name = arg_utils.maybe_get_arg('subcommand', positional=True)
    if runner_name not in runner_registry.registered_runners:
        asked_for_help = any(argument in ('-h', '--help') for argument in sys.argv[1:])
        print(banner(*(f'    * {sys.argv[0]} {name} [...] => {runner_registry.DESCRIPTIONS[name]}'
                       for name in runner_registry.registered_runners), '=' * _WIDTH))
        sys.exit(0 if asked_for_help and runner_name is None else 1)

    from open_lth.foundations.hparams import make_parser
    from open_lth.platforms import registry as platform_registry
    platform_name = arg_utils.maybe_get_arg('platform') or 'local'
    if platform_name not in platform_registry.registered_platforms:
        print(f'Invalid platform name: {platform_name}')
        sys.exit(1)
    platform_class = platform_registry.get(platform_name)

    runner_class = runner_registry.get(runner_name)
    usage = '\n' + banner(f'{os.path.basename(sys.argv[0])} {runner_name} [...] => {runner_class.description()}',
                          '=' * _WIDTH)
    parser = make_parser(usage=usage)
    parser.add_argument('subcommand')
    parser.add_argument('--platform', default='local', help='(default: local) The platform on which to run the job.')
    parser.add_argument('--display_output_location', action='store_true',
                        help="Prints where the job's results are or will be, and does nothing else.")
    platform_class.add_args(parser)
    runner_class.add_args(parser)
    args = parser.parse_args()

    platform = platform_class.create_from_args(args)
    with platform.in_force():
        runner = runner_class.create_from_args(args)
    if args.display_output_location:
        platform.run_job(runner.display_output_location)
        return

    def seed_and_run():
        from open_lth.foundations import rng
        seed = platform.global_seed
        rng.seed_everything(rng.derive_seed(*runner.seed_names) if seed is None else seed)
        runner.run()

    platform.run_job(seed_and_run)


def _complain(error):
    if isinstance(error, BrokenPipeError):  # the reader of our output left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError) and error.strerror:
        message = f'{error.strerror}: {error.filename}' if error.filename else error.strerror
    else:
        message = str(error)
    print(f'error: {" ".join(message.split())}', file=sys.stderr)
    return 2
