# Completions of clawd(8) for fish.
complete -c clawd -f
complete -c clawd -l config -r -F -d 'Configuration file'
complete -c clawd -n __fish_use_subcommand -l check-config -d 'Check the configuration, change nothing'
complete -c clawd -n __fish_use_subcommand -l print-config -d 'Print the whole configuration'
complete -c clawd -n __fish_use_subcommand -l version -d 'Print the version'
complete -c clawd -n __fish_use_subcommand -a join -d 'Give this host its identity in a fleet'
complete -c clawd -n __fish_use_subcommand -a help -d 'Print help'
complete -c clawd -n '__fish_seen_subcommand_from join' -l coordinator -x -d 'Where the coordinator is'
complete -c clawd -n '__fish_seen_subcommand_from join' -l token -x -d 'The join token'
complete -c clawd -n '__fish_seen_subcommand_from join' -l token-file -r -F -d 'File that holds the join token'
complete -c clawd -n '__fish_seen_subcommand_from join' -l host-name -x -d 'Name of this host in the fleet'
complete -c clawd -l help -d 'Print help'
