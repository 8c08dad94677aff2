# Completions of claw-coordinator(8) for fish.
set -l coordinator complete -c claw-coordinator
$coordinator -f
$coordinator -n __fish_use_subcommand -l config -r -F -d 'Configuration file'
$coordinator -n __fish_use_subcommand -l check-config -d 'Check the configuration and exit'
$coordinator -n __fish_use_subcommand -l print-config -d 'Print the configuration and exit'
$coordinator -n __fish_use_subcommand -l version -d 'Print the version'
$coordinator -n __fish_use_subcommand -a init -d 'Make a new fleet'
$coordinator -n __fish_use_subcommand -a issue -d 'Make a key and certificate'
$coordinator -n __fish_use_subcommand -a deny -d 'Denylist certificates'
$coordinator -n __fish_use_subcommand -a help -d 'Print help'
$coordinator -n '__fish_seen_subcommand_from init issue deny' -l data-dir -r -F -d 'Data of the fleet'
$coordinator -n '__fish_seen_subcommand_from init issue deny' -l name -x -d 'Name'
$coordinator -n '__fish_seen_subcommand_from init issue' -l out -r -F -d 'Directory for credentials'
$coordinator -n '__fish_seen_subcommand_from init' -l trust-domain -x -d 'Stands in every certificate'
$coordinator -n '__fish_seen_subcommand_from init' -l operator -x -d 'Name of the first operator'
$coordinator -n '__fish_seen_subcommand_from issue deny' -l role -x -a 'operator service viewer' -d 'Role'
$coordinator -n '__fish_seen_subcommand_from issue' -l days -x -d 'Days until the certificate ends'
$coordinator -l help -d 'Print help'
