{{- define "authz.fullname" -}}
{{- $name := .Values.fullnameOverride }}
{{- if not $name }}
{{- $name = contains .Chart.Name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) }}
{{- end }}
{{- $name | trunc 57 | trimSuffix "-" }}
{{- end }}

{{- define "authz.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "authz.labels" -}}
{{ include "authz.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "authz.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (.Values.serviceAccount.create | ternary (include "authz.fullname" .) "default") }}
{{- end }}

{{- define "authz.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "authz.configMap" -}}
{{- .Values.existingConfigMap | default (printf "%s-rules" (include "authz.fullname" .)) }}
{{- end }}

{{- /* The `server` part of the rules, in JSON; nothing is known of it where the ConfigMap is another's. */}}
{{- define "authz.server" -}}
{{- if .Values.existingConfigMap }}
{{- dict | toJson }}
{{- else }}
{{- $rules := fromYaml .Values.rules }}
{{- with $rules.Error }}
{{- fail (printf "`rules` is no YAML: %s" .) }}
{{- end }}
{{- if not $rules.rules }}
{{- fail "`rules` is the whole rules file as a text, and has no list `rules`: see docs/rules.md" }}
{{- end }}
{{- $server := $rules.server | default dict }}
{{- if not (kindIs "map" $server) }}
{{- fail "`server` of the rules is a mapping: see docs/rules.md" }}
{{- end }}
{{- if hasKey $server "grpc" }}
{{- $fine := kindIs "slice" $server.grpc }}
{{- if $fine }}
{{- range $server.grpc }}
{{- $fine = and $fine (kindIs "map" .) (kindIs "string" (get (kindIs "map" . | ternary . dict) "address")) }}
{{- end }}
{{- end }}
{{- if not $fine }}
{{- fail "`server.grpc` of the rules is a list of `{address: …}`" }}
{{- end }}
{{- end }}
{{- $server | toJson }}
{{- end }}
{{- end }}

{{- /* What the schema of the values cannot tell: whether they fit what the rules say. */}}
{{- define "authz.check" -}}
{{- $name := include "authz.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "a Service cannot be called `%s`: set `fullnameOverride` to lower-case letters, digits and `-`, a letter first" $name) }}
{{- end }}
{{- $server := include "authz.server" . | fromJson }}
{{- /* Where the ConfigMap is another's, what it says cannot be known. */}}
{{- $drain := dig "drain_s" (empty .Values.existingConfigMap | ternary 20 0) $server | int }}
{{- $least := add .Values.preStopSleepSeconds $drain 5 }}
{{- if lt (int .Values.terminationGracePeriodSeconds) (int $least) }}
{{- fail (printf "`terminationGracePeriodSeconds` is %v, and a pod needs %v: `preStopSleepSeconds`, `server.drain_s` (%v) and 5" .Values.terminationGracePeriodSeconds $least $drain) }}
{{- end }}
{{- if not .Values.existingConfigMap }}
{{- include "authz.checkServer" (list . $server) }}
{{- end }}
{{- $pods := .Values.autoscaling.enabled | ternary .Values.autoscaling.minReplicas .Values.replicas }}
{{- $stay := .Values.podDisruptionBudget.minAvailable }}
{{- if and .Values.podDisruptionBudget.enabled (not (kindIs "string" $stay)) (ge (int $stay) (int $pods)) }}
{{- fail (printf "`podDisruptionBudget.minAvailable` is %v of %v pods: no node under them could be drained" $stay $pods) }}
{{- end }}
{{- end }}

{{- /* Whether ports, probes and workers fit the `server` part of the rules: a list of the chart and that part. */}}
{{- define "authz.checkServer" -}}
{{- $values := (index . 0).Values }}
{{- $server := index . 1 }}
{{- if not (or $server.workers (dig "limits" "cpu" "" $values.resources)) }}
{{- fail "`server.workers` of the rules is not said: without a limit of CPU each core of the node would get a worker, and the limit of memory is for two; write `workers: 2`, or set `resources.limits.cpu`" }}
{{- end }}
{{- $listeners := $server.grpc | default (list (dict "address" "0.0.0.0:9001")) }}
{{- $listener := dict }}
{{- range $listeners }}
{{- if hasSuffix (printf ":%v" $values.ports.grpc) .address }}
{{- $listener = . }}
{{- end }}
{{- end }}
{{- if not $listener }}
{{- fail (printf "`ports.grpc` is %v, and no address under `server.grpc` of the rules has that port" $values.ports.grpc) }}
{{- end }}
{{- if and $listener.tls (eq $values.probes "grpc") }}
{{- fail "kubelet asks gRPC without TLS, and `server.grpc` of the rules has `tls`: set `probes: http`" }}
{{- end }}
{{- $http := hasKey $server "http" | ternary $server.http "0.0.0.0:9002" }}
{{- if $http }}
{{- if not (hasSuffix (printf ":%v" $values.ports.http) (toString $http)) }}
{{- fail (printf "`ports.http` is %v, and `server.http` of the rules is `%s`" $values.ports.http $http) }}
{{- end }}
{{- else if or (eq $values.probes "http") $values.serviceMonitor.enabled }}
{{- fail "`server.http` of the rules is null: neither `probes: http` nor `serviceMonitor` can ask there" }}
{{- end }}
{{- end }}

{{- define "authz.namespaces" -}}
{{- range . }}
- namespaceSelector:
    matchLabels:
      kubernetes.io/metadata.name: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "authz.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "authz.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "authz.volumeMounts" -}}
# The folder, and no `subPath`: only then a change of the ConfigMap arrives.
- name: rules
  mountPath: /etc/authz
  readOnly: true
{{- if .Values.existingSecret }}
- name: secrets
  mountPath: /etc/authz-secrets
  readOnly: true
{{- end }}
- name: tmp
  mountPath: /tmp
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "authz.volumes" -}}
- name: rules
  configMap:
    name: {{ include "authz.configMap" . | quote }}
{{- with .Values.existingSecret }}
- name: secrets
  secret:
    secretName: {{ . | quote }}
    # Rules that name no secret need none; a file that they name and that is not there is refused by name.
    optional: true
    defaultMode: 288 # 0440
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
