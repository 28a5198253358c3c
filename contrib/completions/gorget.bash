# Rendered from the option table: change that, and run `make man`.
_gorget() {
    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command= i
    if [[ $word == = ]]; then word=; fi
    if [[ $previous == = ]]; then previous=${COMP_WORDS[COMP_CWORD-2]}; fi
    case $previous in
    --database|--parameters|--private-key|--public-key|--socket|--specifications)
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    --cache|--cache-directory|--log-directory|--run-directory|--state-directory)
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    --job-user|--user)
        mapfile -t COMPREPLY < <(compgen -u -- "$word"); return ;;
    --socket-group)
        mapfile -t COMPREPLY < <(compgen -g -- "$word"); return ;;
    esac
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
        -*|=) ;;
        *) if [[ ${COMP_WORDS[i-1]} != = ]]; then command=${COMP_WORDS[i]}; break; fi ;;
        esac
    done
    local words files=
    case $command in
    '') words='register evaluate check status jobsets builds evaluations queue workers trigger add activate deactivate delete restart cancel retry prioritize pause resume log watch wait reload backup check-database token web remote-server remote-worker help --help --version' ;;
    register) words='--specifications --one-shot --interval --parameters --state-directory --database --run-directory --cache-directory --log-directory --socket --socket-group --max-fetches --fetch-timeout --max-evaluations --threads --evaluation-memory --guix --max-builds --builder --build-remote --fallback --use-substitutes --job-user --max-log-size --minimum-disk-space --ttl --log-expiry --build-expiry --history-expiry --max-connections --web --help --version' ;;
    evaluate) words='--specifications --fetch-timeout --guix --help --version' files=1 ;;
    check) words='--specifications --parameters --guix --help --version' files=1 ;;
    status) words='--json --socket --state-directory --help --version' ;;
    jobsets) words='--json --socket --state-directory --help --version' ;;
    builds) words='--jobset --evaluation --status --limit --json --socket --state-directory --help --version' ;;
    evaluations) words='--limit --json --socket --state-directory --help --version' ;;
    queue) words='--limit --json --socket --state-directory --help --version' ;;
    workers) words='--json --socket --state-directory --help --version' ;;
    trigger) words='--json --socket --state-directory --help --version' ;;
    add) words='--guix --json --socket --state-directory --help --version' files=1 ;;
    activate) words='--json --socket --state-directory --help --version' ;;
    deactivate) words='--json --socket --state-directory --help --version' ;;
    delete) words='--json --socket --state-directory --help --version' ;;
    restart) words='--evaluation --all --json --socket --state-directory --help --version' ;;
    cancel) words='--evaluation --json --socket --state-directory --help --version' ;;
    retry) words='--json --socket --state-directory --help --version' ;;
    prioritize) words='--json --socket --state-directory --help --version' ;;
    pause) words='--json --socket --state-directory --help --version builds evaluations' ;;
    resume) words='--json --socket --state-directory --help --version builds evaluations' ;;
    log) words='--evaluation --follow --json --socket --state-directory --help --version' ;;
    watch) words='--json --socket --state-directory --help --version' ;;
    wait) words='--evaluation --timeout --json --socket --state-directory --help --version' ;;
    reload) words='--json --socket --state-directory --help --version' ;;
    backup) words='--json --socket --state-directory --help --version' files=1 ;;
    check-database) words='--json --socket --state-directory --help --version' ;;
    token) words='--jobset --expires --json --socket --state-directory --help --version add list revoke' ;;
    web) words='--port --listen --database --state-directory --socket --parameters --help --version' ;;
    remote-server) words='--backend-port --log-port --publish-port --no-publish --cache --log-expiry --trigger-substitute-url --user --public-key --private-key --ttl --database --state-directory --run-directory --parameters --help --version' ;;
    remote-worker) words='--workers --server --systems --publish-port --minimum-disk-space --substitute-urls --user --public-key --private-key --ttl --database --state-directory --run-directory --help --version' ;;
    help) words='--help --version register evaluate check status jobsets builds evaluations queue workers trigger add activate deactivate delete restart cancel retry prioritize pause resume log watch wait reload backup check-database token web remote-server remote-worker help' ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word"; if [[ $files ]]; then compgen -f -- "$word"; fi)
}
complete -o filenames -F _gorget gorget
