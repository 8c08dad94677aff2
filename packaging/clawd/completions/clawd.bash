# Completions of clawd(8) for bash.
_clawd() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words
    COMPREPLY=()
    case $prev in
    --config | --token-file)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    --coordinator | --token | --host-name) return ;;
    esac
    if [[ ${COMP_WORDS[1]} == join ]]; then
        words="--coordinator --token --token-file --host-name --config --help"
    else
        words="join dns firewall-boot firewall-check firewall-revert help --config --check-config --print-config --help --version"
    fi
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _clawd clawd
