;;; A Shepherd service that runs the daemon as root, and its jobs as the user `gorget-jobs'.
;;;
;;; Without Guix System: copy this to Shepherd's configuration directory and load it from there.  It needs the group
;;; `gorget', whose members may use the bridge, and the user `gorget-jobs', who must not be a member; for the web
;;; interface, which is a service of its own, also the user `gorget-web', and for remote builds the user `gorget-remote'.

(use-modules (shepherd service)
             (shepherd support))

(define gorget
  (service
   '(gorget)
   #:documentation "Continuous integration for functional package managers."
   #:requirement '()
   ;; The daemon logs to standard error and stays in the foreground.
   #:start (make-forkexec-constructor
            '("/usr/local/bin/gorget" "register"
              "--job-user=gorget-jobs"
              "--socket-group=gorget"
              "--specifications=/etc/gorget/specifications.json")
            #:log-file "/var/log/gorget.log"
            #:environment-variables
            (append '("STATE_DIRECTORY=/var/lib/gorget"
                      "CACHE_DIRECTORY=/var/cache/gorget"
                      "RUNTIME_DIRECTORY=/run/gorget")
                    (default-environment-variables)))
   ;; It stops its jobs itself, in order, in less than 10 seconds.
   #:stop (make-kill-destructor SIGTERM #:grace-period 30)
   #:actions (list (shepherd-action
                    (name 'reload)
                    (documentation "Read the specification files again.")
                    (procedure (lambda (running)
                                 (let ((pid (if (process? running)
                                                (process-id running)
                                                running)))
                                   (kill pid SIGHUP)
                                   #t)))))
   #:respawn? #t))

;;; It also works while the daemon is away, so that it does not require it.
(define gorget-web
  (service
   '(gorget-web)
   #:documentation "The web interface of Gorget."
   #:requirement '()
   #:start (make-forkexec-constructor
            '("/usr/local/bin/gorget" "web"
              "--database=/var/lib/gorget/gorget.db"
              "--socket=/run/gorget/bridge")
            #:user "gorget-web"
            #:group "gorget"
            #:log-file "/var/log/gorget-web.log")
   #:stop (make-kill-destructor SIGTERM #:grace-period 30)
   #:respawn? #t))

;;; For remote builds: give the daemon `--build-remote', too.  The keys are those of `guix archive --generate-key'; without
;;; Guix, say `--no-publish'.
(define gorget-remote-server
  (service
   '(gorget-remote-server)
   #:documentation "Gorget's server of remote workers."
   #:requirement '()
   #:start (make-forkexec-constructor
            '("/usr/local/bin/gorget" "remote-server"
              "--user=gorget-remote"
              "--socket-group=gorget")
            #:log-file "/var/log/gorget-remote-server.log"
            #:environment-variables
            (append '("CACHE_DIRECTORY=/var/cache/gorget"
                      "RUNTIME_DIRECTORY=/run/gorget")
                    (default-environment-variables)))
   #:stop (make-kill-destructor SIGTERM #:grace-period 30)
   #:respawn? #t))

;;; For a machine that builds for a server; it needs neither of the others.  It is root until the keys are read.
(define gorget-remote-worker
  (service
   '(gorget-remote-worker)
   #:documentation "A worker that builds for a remote server."
   #:requirement '()
   #:start (make-forkexec-constructor
            '("/usr/local/bin/gorget" "remote-worker"
              "--workers=2"
              "--user=gorget-worker")
            #:log-file "/var/log/gorget-remote-worker.log"
            #:environment-variables
            (cons "STATE_DIRECTORY=/var/lib/gorget-worker"
                  (default-environment-variables)))
   ;; It finishes what it builds; a second signal would give that up.
   #:stop (make-kill-destructor SIGTERM #:grace-period 900)
   #:respawn? #t))

;;; Where a machine only builds, put `gorget-remote-worker' alone into the list.
(register-services (list gorget gorget-web gorget-remote-server))
