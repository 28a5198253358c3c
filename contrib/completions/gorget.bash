# Rendered from the option table: change that, and run `make man`.
_gorget() {
    local word=${COMP_WORDS[COMP_CWORD]} command= option= i
    local -a operands=()
    if [[ $word == = ]]; then word=; fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$command ${COMP_WORDS[i]}" in
        ' --socket'|\
        ' --state-directory'|\
        'register -S'|'register --specifications'|\
        'register -I'|'register --interval'|\
        'register -P'|'register --parameters'|\
        'register --state-directory'|\
        'register -D'|'register --database'|\
        'register --run-directory'|\
        'register --cache-directory'|\
        'register --log-directory'|\
        'register --socket'|\
        'register --socket-group'|\
        'register --max-fetches'|\
        'register --fetch-timeout'|\
        'register --max-evaluations'|\
        'register --threads'|\
        'register --evaluation-memory'|\
        'register --guix'|\
        'register --max-builds'|\
        'register --builder'|\
        'register --job-user'|\
        'register --max-log-size'|\
        'register --minimum-disk-space'|\
        'register --ttl'|\
        'register --log-expiry'|\
        'register --build-expiry'|\
        'register --history-expiry'|\
        'register --max-connections'|\
        'register --web'|\
        'evaluate -S'|'evaluate --specifications'|\
        'evaluate --fetch-timeout'|\
        'evaluate --guix'|\
        'check -S'|'check --specifications'|\
        'check -P'|'check --parameters'|\
        'check --guix'|\
        'status --socket'|\
        'status --state-directory'|\
        'jobsets --socket'|\
        'jobsets --state-directory'|\
        'builds --jobset'|\
        'builds --evaluation'|\
        'builds --status'|\
        'builds --limit'|\
        'builds --socket'|\
        'builds --state-directory'|\
        'evaluations --limit'|\
        'evaluations --socket'|\
        'evaluations --state-directory'|\
        'queue --limit'|\
        'queue --socket'|\
        'queue --state-directory'|\
        'workers --socket'|\
        'workers --state-directory'|\
        'trigger --socket'|\
        'trigger --state-directory'|\
        'add --guix'|\
        'add --socket'|\
        'add --state-directory'|\
        'activate --socket'|\
        'activate --state-directory'|\
        'deactivate --socket'|\
        'deactivate --state-directory'|\
        'delete --socket'|\
        'delete --state-directory'|\
        'restart --evaluation'|\
        'restart --socket'|\
        'restart --state-directory'|\
        'cancel --evaluation'|\
        'cancel --socket'|\
        'cancel --state-directory'|\
        'retry --socket'|\
        'retry --state-directory'|\
        'prioritize --socket'|\
        'prioritize --state-directory'|\
        'pause --socket'|\
        'pause --state-directory'|\
        'resume --socket'|\
        'resume --state-directory'|\
        'log --evaluation'|\
        'log --socket'|\
        'log --state-directory'|\
        'watch --socket'|\
        'watch --state-directory'|\
        'wait --evaluation'|\
        'wait --timeout'|\
        'wait --socket'|\
        'wait --state-directory'|\
        'reload --socket'|\
        'reload --state-directory'|\
        'backup --socket'|\
        'backup --state-directory'|\
        'check-database --socket'|\
        'check-database --state-directory'|\
        'token --jobset'|\
        'token --expires'|\
        'token --socket'|\
        'token --state-directory'|\
        'web -p'|'web --port'|\
        'web --listen'|\
        'web -D'|'web --database'|\
        'web --state-directory'|\
        'web --socket'|\
        'web -P'|'web --parameters'|\
        'remote-server -b'|'remote-server --backend-port'|\
        'remote-server -l'|'remote-server --log-port'|\
        'remote-server -u'|'remote-server --user'|\
        'remote-server --max-log-size'|\
        'remote-server -p'|'remote-server --publish-port'|\
        'remote-server --public-key'|\
        'remote-server --private-key'|\
        'remote-server --guix'|\
        'remote-server --state-directory'|\
        'remote-server --run-directory'|\
        'remote-server --socket-group'|\
        'remote-server -c'|'remote-server --cache'|\
        'remote-server --log-expiry'|\
        'remote-server -D'|'remote-server --database'|\
        'remote-server -P'|'remote-server --parameters'|\
        'remote-server -t'|'remote-server --ttl'|\
        'remote-server -T'|'remote-server --trigger-substitute-url'|\
        'remote-worker -w'|'remote-worker --workers'|\
        'remote-worker -s'|'remote-worker --server'|\
        'remote-worker -S'|'remote-worker --systems'|\
        'remote-worker --minimum-disk-space'|\
        'remote-worker --maximum-load'|\
        'remote-worker --substitute-urls'|\
        'remote-worker -p'|'remote-worker --publish-port'|\
        'remote-worker --public-key'|\
        'remote-worker --private-key'|\
        'remote-worker --guix'|\
        'remote-worker -u'|'remote-worker --user'|\
        'remote-worker --state-directory'|\
        'remote-worker --run-directory'|\
        'remote-worker -t'|'remote-worker --ttl'|\
        'remote-worker -D'|'remote-worker --database')
            option="$command ${COMP_WORDS[i]}"
            if [[ ${COMP_WORDS[i+1]} == = ]]; then i=$((i + 1)); fi
            if ((i + 1 >= COMP_CWORD)); then break; fi
            option=
            i=$((i + 1)) ;;
        *' -'*) ;;
        ' '*) command=${COMP_WORDS[i]} ;;
        *) operands+=("${COMP_WORDS[i]}") ;;
        esac
    done
    case $option in
    '') ;;
    ' --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    ' --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'register -S'|'register --specifications')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'register -P'|'register --parameters')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'register --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'register -D'|'register --database')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'register --run-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'register --cache-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'register --log-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'register --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'register --socket-group')
        mapfile -t COMPREPLY < <(compgen -g -- "$word"); return ;;
    'register --builder')
        mapfile -t COMPREPLY < <(compgen -W 'auto process guix nix' -- "$word"); return ;;
    'register --job-user')
        mapfile -t COMPREPLY < <(compgen -u -- "$word"); return ;;
    'evaluate -S'|'evaluate --specifications')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'check -S'|'check --specifications')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'check -P'|'check --parameters')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'status --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'status --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'jobsets --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'jobsets --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'builds --status')
        mapfile -t COMPREPLY < <(compgen -W 'submitted scheduled started succeeded failed failed-dependency aborted canceled' -- "$word"); return ;;
    'builds --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'builds --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'evaluations --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'evaluations --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'queue --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'queue --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'workers --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'workers --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'trigger --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'trigger --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'add --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'add --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'activate --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'activate --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'deactivate --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'deactivate --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'delete --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'delete --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'restart --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'restart --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'cancel --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'cancel --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'retry --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'retry --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'prioritize --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'prioritize --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'pause --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'pause --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'resume --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'resume --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'log --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'log --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'watch --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'watch --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'wait --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'wait --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'reload --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'reload --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'backup --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'backup --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'check-database --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'check-database --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'token --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'token --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'web -D'|'web --database')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'web --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'web --socket')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'web -P'|'web --parameters')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'remote-server -u'|'remote-server --user')
        mapfile -t COMPREPLY < <(compgen -u -- "$word"); return ;;
    'remote-server --public-key')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'remote-server --private-key')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'remote-server --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'remote-server --run-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'remote-server --socket-group')
        mapfile -t COMPREPLY < <(compgen -g -- "$word"); return ;;
    'remote-server -c'|'remote-server --cache')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'remote-server -D'|'remote-server --database')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'remote-server -P'|'remote-server --parameters')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'remote-worker --public-key')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'remote-worker --private-key')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    'remote-worker -u'|'remote-worker --user')
        mapfile -t COMPREPLY < <(compgen -u -- "$word"); return ;;
    'remote-worker --state-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'remote-worker --run-directory')
        mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    'remote-worker -D'|'remote-worker --database')
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    *) COMPREPLY=(); return ;;
    esac
    case "${word:0:1} $command ${#operands[@]} ${operands[0]}" in
    -*) ;;
    *' check '*)
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    *' add 0 '*)
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    *' pause 0 '*)
        mapfile -t COMPREPLY < <(compgen -W 'builds evaluations worker' -- "$word"); return ;;
    *' resume 0 '*)
        mapfile -t COMPREPLY < <(compgen -W 'builds evaluations worker' -- "$word"); return ;;
    *' backup 0 '*)
        mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    *' token 0 '*)
        mapfile -t COMPREPLY < <(compgen -W 'add list revoke' -- "$word"); return ;;
    *' token 2 add')
        mapfile -t COMPREPLY < <(compgen -W 'trigger viewer operator editor admin' -- "$word"); return ;;
    *' help 0 '*)
        mapfile -t COMPREPLY < <(compgen -W 'register evaluate check status jobsets builds evaluations queue workers trigger add activate deactivate delete restart cancel retry prioritize pause resume log watch wait reload backup check-database token web remote-server remote-worker help' -- "$word"); return ;;
    esac
    local words=
    case $command in
    '') words='register evaluate check status jobsets builds evaluations queue workers trigger add activate deactivate delete restart cancel retry prioritize pause resume log watch wait reload backup check-database token web remote-server remote-worker help --help --version' ;;
    register) words='--specifications --one-shot --interval --parameters --state-directory --database --run-directory --cache-directory --log-directory --socket --socket-group --max-fetches --fetch-timeout --max-evaluations --threads --evaluation-memory --guix --max-builds --builder --build-remote --fallback --use-substitutes --job-user --max-log-size --minimum-disk-space --ttl --log-expiry --build-expiry --history-expiry --max-connections --web --help --version' ;;
    evaluate) words='--specifications --fetch-timeout --guix --help --version' ;;
    check) words='--specifications --parameters --guix --help --version' ;;
    status) words='--json --socket --state-directory --help --version' ;;
    jobsets) words='--json --socket --state-directory --help --version' ;;
    builds) words='--jobset --evaluation --status --limit --json --socket --state-directory --help --version' ;;
    evaluations) words='--limit --json --socket --state-directory --help --version' ;;
    queue) words='--limit --json --socket --state-directory --help --version' ;;
    workers) words='--json --socket --state-directory --help --version' ;;
    trigger) words='--json --socket --state-directory --help --version' ;;
    add) words='--guix --json --socket --state-directory --help --version' ;;
    activate) words='--json --socket --state-directory --help --version' ;;
    deactivate) words='--json --socket --state-directory --help --version' ;;
    delete) words='--json --socket --state-directory --help --version' ;;
    restart) words='--evaluation --all --json --socket --state-directory --help --version' ;;
    cancel) words='--evaluation --json --socket --state-directory --help --version' ;;
    retry) words='--json --socket --state-directory --help --version' ;;
    prioritize) words='--json --socket --state-directory --help --version' ;;
    pause) words='--json --socket --state-directory --help --version' ;;
    resume) words='--json --socket --state-directory --help --version' ;;
    log) words='--evaluation --follow --json --socket --state-directory --help --version' ;;
    watch) words='--json --socket --state-directory --help --version' ;;
    wait) words='--evaluation --timeout --json --socket --state-directory --help --version' ;;
    reload) words='--json --socket --state-directory --help --version' ;;
    backup) words='--json --socket --state-directory --help --version' ;;
    check-database) words='--json --socket --state-directory --help --version' ;;
    token) words='--jobset --expires --json --socket --state-directory --help --version' ;;
    web) words='--port --listen --database --state-directory --socket --parameters --help --version' ;;
    remote-server) words='--backend-port --log-port --user --max-log-size --no-announce --publish-port --no-publish --public-key --private-key --guix --state-directory --run-directory --socket-group --cache --log-expiry --database --parameters --ttl --trigger-substitute-url --help --version' ;;
    remote-worker) words='--workers --server --systems --minimum-disk-space --maximum-load --substitute-urls --publish-port --no-publish --public-key --private-key --guix --user --state-directory --run-directory --ttl --database --help --version' ;;
    help) words='--help --version' ;;
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
}
complete -o filenames -F _gorget gorget
