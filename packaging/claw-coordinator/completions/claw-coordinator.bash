# Completions of claw-coordinator(8) for bash.
_claw_coordinator() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words
    COMPREPLY=()
    case $prev in
    --config | --data-dir | --out)
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
        return
        ;;
    --role)
        mapfile -t COMPREPLY < <(compgen -W "operator service viewer" -- "$cur")
        return
        ;;
    --name | --trust-domain | --operator | --days) return ;;
    esac
    case ${COMP_WORDS[1]} in
    init) words="--data-dir --name --trust-domain --operator --out --help" ;;
    issue) words="--data-dir --role --name --out --days --help" ;;
    deny) words="--data-dir --role --name --help" ;;
    *) words="init issue deny help --config --check-config --print-config --help --version" ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}
complete -F _claw_coordinator claw-coordinator
