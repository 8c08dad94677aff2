#compdef clawd
# Completions of clawd(8) for zsh.
_clawd() {
    if [[ ${words[2]} == join ]]; then
        _arguments \
            '2:command:(join)' \
            '--coordinator[where the coordinator is]:host\:port:_hosts' \
            '--token[the join token]:token:' \
            '--token-file[file that holds the join token]:file:_files' \
            "--host-name[this host's name in the fleet]:name:" \
            '--config[configuration file]:file:_files' \
            '--help[print help]'
    else
        _arguments \
            '--config[configuration file]:file:_files' \
            '--check-config[check the configuration, change nothing]' \
            '--print-config[print the whole configuration]' \
            '--help[print help]' \
            '--version[print the version]' \
            '1:command:(join dns firewall-boot firewall-check firewall-revert help)'
    fi
}
_clawd "$@"
