#compdef claw-coordinator
# Completions of claw-coordinator(8) for zsh.
_claw_coordinator() {
    local data='--data-dir[data of the fleet]:directory:_files -/'
    local role='--role[role]:role:(operator service viewer)'
    local name='--name[name]:name:'
    local out='--out[directory for credentials]:directory:_files -/'
    case ${words[2]} in
    init)
        _arguments '2:command:(init)' $data '*--name[DNS name or address of the coordinator]:name:_hosts' \
            '--trust-domain[stands in every certificate]:domain:' \
            '--operator[name of the first operator]:name:' $out '--help[print help]'
        ;;
    issue)
        _arguments '2:command:(issue)' $data $role $name $out \
            '--days[days until the certificate ends]:days:' '--help[print help]'
        ;;
    deny)
        _arguments '2:command:(deny)' $data $role $name '--help[print help]'
        ;;
    *)
        _arguments \
            '--config[configuration file]:file:_files' \
            '--check-config[check the configuration and exit]' \
            '--print-config[print the configuration and exit]' \
            '--help[print help]' \
            '--version[print the version]' \
            '1:command:(init issue deny help)'
        ;;
    esac
}
_claw_coordinator "$@"
