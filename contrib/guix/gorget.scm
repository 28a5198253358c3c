;;; Gorget for Guix: the package, and the service of a Guix System.
;;;
;;; With this directory on the load path (`guix system reconfigure -L /path/to/gorget/contrib/guix config.scm`):
;;;
;;;   (use-modules (gnu) (gnu services networking) (guix channels) (gorget))
;;;
;;;   (operating-system
;;;     …
;;;     (services
;;;      (cons* (service gorget-service-type
;;;                      (gorget-configuration
;;;                       (specifications
;;;                        #~(list (specification
;;;                                 (name 'my-channel)
;;;                                 (build '(channels my-channel))
;;;                                 (channels
;;;                                  (cons (channel
;;;                                         (name 'my-channel) (branch "main")
;;;                                         (url "https://example.org/channel.git"))
;;;                                        %default-channels)))))))
;;;             ;; Or whatever else provides 'networking'.
;;;             (service dhcp-client-service-type)
;;;             %base-services)))
;;;
;;; The specifications are Cuirass's, as for its service.  The daemon runs as root, its evaluations as the user
;;; `gorget-jobs', and guix-daemon builds.  Members of the group `gorget' may use the bridge.
;;;
;;; With (remote-server '()) in its configuration, other machines build; each of them has
;;;
;;;   (service gorget-worker-service-type
;;;            (gorget-worker-configuration (server "farm.example:5555") (builds 4)))
;;;
;;; and both sides authorize each other's key, see gorget-remote-worker(1).

(define-module (gorget)
  #:use-module (gnu packages)
  #:use-module (gnu services)
  #:use-module (gnu services shepherd)
  #:use-module (gnu system shadow)
  #:use-module (guix build-system gnu)
  #:use-module (guix gexp)
  #:use-module ((guix licenses) #:prefix license:)
  #:use-module (guix packages)
  #:use-module (guix records)
  #:use-module (guix utils)
  #:use-module (ice-9 match)
  #:export (gorget
            gorget-configuration
            gorget-configuration?
            gorget-service-type
            gorget-worker-configuration
            gorget-worker-configuration?
            gorget-worker-service-type))

;; The checkout that this file is in.
(define %checkout
  (dirname (dirname (current-source-directory))))

;; Without what builds leave there.
(define (source-file? file stat)
  (not (member (basename file) '(".git" "target"))))

;; Builds do not reach the network: "cargo vendor vendor" in the checkout lays the crates of Cargo.lock there.
(define gorget
  (package
    (name "gorget")
    (version "0.1.0")
    (source (local-file %checkout "gorget-checkout"
                        #:recursive? #t
                        #:select? source-file?))
    (build-system gnu-build-system)
    (arguments
     (list
      ;; They need Git servers, daemons and a terminal.
      #:tests? #f
      #:make-flags
      #~(list (string-append "PREFIX=" #$output)
              "SYSCONFDIR=/etc")
      #:phases
      #~(modify-phases %standard-phases
          (replace 'configure
            (lambda _
              (unless (file-exists? "vendor")
                (error "there are no crates: run \"cargo vendor vendor\" in the checkout"))
              (setenv "HOME" (getcwd))
              (mkdir-p ".cargo")
              (call-with-output-file ".cargo/config.toml"
                (lambda (port)
                  (display "[source.crates-io]
replace-with = \"vendored-sources\"
[source.vendored-sources]
directory = \"vendor\"
[net]
offline = true
" port))))))))
    ;; Rust 1.89 or later: the newest that Guix has.
    (native-inputs
     (let ((rust (specification->package "rust")))
       (list (specification->package "pkg-config") rust (list rust "cargo"))))
    (inputs
     (list (specification->package "openssl")))
    (home-page "https://example.org/gorget")
    (synopsis "Continuous integration for functional package managers")
    (description
     "Gorget is a continuous-integration daemon for Guix channels, Nix repositories, and everything that is built by a
command.  It watches Git repositories, evaluates jobsets, builds their jobs and keeps the results, as Cuirass does,
and reads the specifications of Cuirass.")
    (license license:gpl3+)))

(define-record-type* <gorget-configuration>
  gorget-configuration make-gorget-configuration
  gorget-configuration?
  (gorget           gorget-configuration-gorget            ;file-like
                    (default gorget))
  (specifications   gorget-configuration-specifications    ;gexp of a list of specifications
                    (default #~'()))
  ;; Further files, in Scheme or JSON: those with secrets, which must not get into the store.
  (specification-files gorget-configuration-specification-files ;list of file names
                    (default '()))
  (parameters       gorget-configuration-parameters        ;file name or #f
                    (default #f))
  (web              gorget-configuration-web               ;"HOST:PORT" or #f, see gorget-web(1)
                    (default #f))
  (interval         gorget-configuration-interval          ;seconds
                    (default 300))
  (ttl              gorget-configuration-ttl               ;seconds
                    (default (* 30 24 3600)))
  (build-expiry     gorget-configuration-build-expiry      ;seconds or #f
                    (default (* 120 24 3600)))
  (max-evaluations  gorget-configuration-max-evaluations   ;number or #f
                    (default #f))
  (max-builds       gorget-configuration-max-builds        ;number or #f
                    (default #f))
  (fallback?        gorget-configuration-fallback?         ;Boolean
                    (default #t))
  ;; Builds go to workers then, by a service of its own, see gorget-remote-server(1).
  (remote-server    gorget-configuration-remote-server     ;list of strings, its options, or #f
                    (default #f))
  (log-file         gorget-configuration-log-file          ;string
                    (default "/var/log/gorget.log"))
  (extra-options    gorget-configuration-extra-options     ;list of strings, see gorget-register(1)
                    (default '())))

(define %accounts
  (list (user-group (name "gorget") (system? #t))
        (user-group (name "gorget-jobs") (system? #t))
        ;; Not of the group `gorget': what it runs must not reach the bridge.
        (user-account
         (name "gorget-jobs")
         (group "gorget-jobs")
         (system? #t)
         (comment "Evaluations of Gorget")
         (home-directory "/var/empty")
         (shell #~(string-append #$(specification->package "shadow") "/sbin/nologin")))
        ;; Nor is this one: it is what the network speaks to.
        (user-group (name "gorget-remote") (system? #t))
        (user-account
         (name "gorget-remote")
         (group "gorget-remote")
         (system? #t)
         (comment "Gorget's server of remote workers")
         (home-directory "/var/empty")
         (shell #~(string-append #$(specification->package "shadow") "/sbin/nologin")))))

(define (gorget-remote-server-shepherd-service config)
  (match-record config <gorget-configuration>
    (gorget remote-server)
    (if remote-server
        (list
         (shepherd-service
          (documentation "Run Gorget's server of remote workers.")
          (provision '(gorget-remote-server))
          (requirement '(user-processes guix-daemon networking))
          (start #~(make-forkexec-constructor
                    (list #$(file-append gorget "/bin/gorget") "remote-server"
                          "--user=gorget-remote"
                          "--socket-group=gorget"
                          #$@remote-server)
                    #:environment-variables
                    (list "CACHE_DIRECTORY=/var/cache/gorget"
                          "RUNTIME_DIRECTORY=/run/gorget"
                          "HOME=/var/empty"
                          "LANG=C.UTF-8"
                          "PATH=/run/current-system/profile/bin")
                    #:log-file "/var/log/gorget-remote-server.log"))
          (stop #~(make-kill-destructor SIGTERM #:grace-period 30))))
        '())))

(define (gorget-shepherd-service config)
  (match-record config <gorget-configuration>
    (gorget specifications specification-files parameters web interval ttl build-expiry
            max-evaluations max-builds fallback? remote-server log-file extra-options)
    (let* ((file (scheme-file "gorget-specifications.scm" specifications))
           (seconds (lambda (option value)
                      (if value
                          (list (string-append option "=" (number->string value)))
                          '())))
           (options (append (map (lambda (file) (string-append "--specifications=" file))
                                 specification-files)
                            (seconds "--interval" interval)
                            (seconds "--ttl" ttl)
                            (seconds "--build-expiry" build-expiry)
                            (seconds "--max-evaluations" max-evaluations)
                            (seconds "--max-builds" max-builds)
                            (if parameters
                                (list (string-append "--parameters=" parameters))
                                '())
                            (if web
                                (list (string-append "--web=" web))
                                '())
                            (if fallback? '("--fallback") '())
                            (if remote-server '("--build-remote") '())
                            extra-options)))
      (list
       (shepherd-service
        (documentation "Run Gorget, continuous integration.")
        (provision '(gorget))
        (requirement '(user-processes guix-daemon networking))
        ;; It stays in the foreground and logs to standard error.
        (start #~(make-forkexec-constructor
                  (list #$(file-append gorget "/bin/gorget") "register"
                        "--job-user=gorget-jobs"
                        "--socket-group=gorget"
                        (string-append "--specifications=" #$file)
                        #$@options)
                  #:environment-variables
                  (list "STATE_DIRECTORY=/var/lib/gorget"
                        "CACHE_DIRECTORY=/var/cache/gorget"
                        "RUNTIME_DIRECTORY=/run/gorget"
                        "HOME=/var/lib/gorget"
                        "LANG=C.UTF-8"
                        "PATH=/run/current-system/profile/bin"
                        "SSL_CERT_DIR=/etc/ssl/certs"
                        "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"
                        "GIT_SSL_CAINFO=/etc/ssl/certs/ca-certificates.crt")
                  #:log-file #$log-file))
        ;; It stops its jobs itself, in order, in less than 10 seconds.
        (stop #~(make-kill-destructor SIGTERM #:grace-period 30))
        (actions
         (list (shepherd-configuration-action file)
               (shepherd-action
                (name 'reload)
                (documentation "Read the specification files again.")
                (procedure #~(lambda (running)
                               (kill (if (process? running)
                                         (process-id running)
                                         running)
                                     SIGHUP)
                               #t))))))))))

;; Directories that the job user must pass through, but need not list.
(define (gorget-activation config)
  (with-imported-modules '((guix build utils))
    #~(begin
        (use-modules (guix build utils))
        (let ((group (group:gid (getgrnam "gorget"))))
          (for-each (lambda (directory mode)
                      (mkdir-p directory)
                      (chown directory 0 group)
                      (chmod directory mode))
                    '("/var/lib/gorget" "/var/cache/gorget" "/run/gorget")
                    '(#o751 #o751 #o750))))))

(define gorget-service-type
  (service-type
   (name 'gorget)
   (extensions
    (list (service-extension account-service-type (const %accounts))
          (service-extension activation-service-type gorget-activation)
          (service-extension profile-service-type
                             (compose list gorget-configuration-gorget))
          (service-extension shepherd-root-service-type
                             (lambda (config)
                               (append (gorget-shepherd-service config)
                                       (gorget-remote-server-shepherd-service config))))))
   (default-value (gorget-configuration))
   (description "Run Gorget, a continuous-integration daemon for Guix channels.")))

(define-record-type* <gorget-worker-configuration>
  gorget-worker-configuration make-gorget-worker-configuration
  gorget-worker-configuration?
  (gorget           gorget-worker-configuration-gorget     ;file-like
                    (default gorget))
  ;; Without one, a server of the local network is looked for.
  (server           gorget-worker-configuration-server     ;"ADDRESS:PORT" or #f
                    (default #f))
  (builds           gorget-worker-configuration-builds     ;number, at once
                    (default 1))
  (log-file         gorget-worker-configuration-log-file   ;string
                    (default "/var/log/gorget-remote-worker.log"))
  (extra-options    gorget-worker-configuration-extra-options ;list of strings, see gorget-remote-worker(1)
                    (default '())))

(define %worker-accounts
  (list (user-group (name "gorget-worker") (system? #t))
        (user-account
         (name "gorget-worker")
         (group "gorget-worker")
         (system? #t)
         (comment "Gorget's worker for a remote server")
         (home-directory "/var/empty")
         (shell #~(string-append #$(specification->package "shadow") "/sbin/nologin")))))

(define (gorget-worker-shepherd-service config)
  (match-record config <gorget-worker-configuration>
    (gorget server builds log-file extra-options)
    (let ((options (append (if server
                               (list (string-append "--server=" server))
                               '())
                           (list (string-append "--workers=" (number->string builds)))
                           extra-options)))
      (list
       (shepherd-service
        (documentation "Run Gorget's worker for a remote server.")
        (provision '(gorget-remote-worker))
        (requirement '(user-processes guix-daemon networking))
        ;; It is root until the signing key is read.
        (start #~(make-forkexec-constructor
                  (list #$(file-append gorget "/bin/gorget") "remote-worker"
                        "--user=gorget-worker"
                        #$@options)
                  #:environment-variables
                  (list "STATE_DIRECTORY=/var/lib/gorget-worker"
                        "HOME=/var/empty"
                        "LANG=C.UTF-8"
                        "PATH=/run/current-system/profile/bin")
                  #:log-file #$log-file))
        ;; It finishes what it builds; a second signal would give that up.
        (stop #~(make-kill-destructor SIGTERM #:grace-period 900)))))))

(define gorget-worker-service-type
  (service-type
   (name 'gorget-worker)
   (extensions
    (list (service-extension account-service-type (const %worker-accounts))
          (service-extension profile-service-type
                             (compose list gorget-worker-configuration-gorget))
          (service-extension shepherd-root-service-type gorget-worker-shepherd-service)))
   (default-value (gorget-worker-configuration))
   (description "Run a worker that builds for Gorget's server of remote workers.")))
